//! The two protocols at the edge: what to read from their requests, and how to frame a response.

use prost::bytes::BufMut;
use xds_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};

use super::codec;
use crate::xds::session::{Protocol, Request, Response};

/// One protocol.
pub(super) trait Wire: 'static {
    type Request: Into<Request> + prost::Message + Default + Send + 'static;
    const PROTOCOL: Protocol;

    fn node(request: &Self::Request) -> Option<&Node>;
    /// The revision that a reconnecting client has ACKed, if the request says it.
    fn revision(request: &Self::Request) -> Option<u64>;
    /// Writes a response of the replica with this identifier.
    fn encode(response: Response, identifier: &str, buffer: &mut impl BufMut);
}

pub(super) struct Sotw;
pub(super) struct Delta;

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn revision(request: &DiscoveryRequest) -> Option<u64> {
        request.version_info.parse().ok()
    }

    fn encode(response: Response, identifier: &str, buffer: &mut impl BufMut) {
        codec::sotw(response, identifier, buffer);
    }
}

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    /// Versions of resources are hashes; the stream's metadata says the revision.
    fn revision(_: &DeltaDiscoveryRequest) -> Option<u64> {
        None
    }

    fn encode(response: Response, identifier: &str, buffer: &mut impl BufMut) {
        codec::delta(response, identifier, buffer);
    }
}
