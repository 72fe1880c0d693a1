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

    fn encode(response: Response, identifier: &str, buffer: &mut impl BufMut) {
        codec::delta(response, identifier, buffer);
    }
}
