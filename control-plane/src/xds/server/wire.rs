//! The two protocols at the edge: what to read from their requests, and how to frame a response.

use xds_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
};

use crate::xds::session::{Protocol, Request, Response};

/// One protocol.
pub(super) trait Wire: 'static {
    type Request: Into<Request> + Send + 'static;
    type Response: Send + 'static;
    const PROTOCOL: Protocol;

    fn node(request: &Self::Request) -> Option<&Node>;
    /// The revision that a reconnecting client has ACKed, if the request says it.
    fn revision(request: &Self::Request) -> Option<u64>;
    fn frame(response: Response, identifier: &str) -> Self::Response;
}

pub(super) struct Sotw;
pub(super) struct Delta;

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn revision(request: &DiscoveryRequest) -> Option<u64> {
        request.version_info.parse().ok()
    }

    fn frame(response: Response, identifier: &str) -> DiscoveryResponse {
        response.into_sotw(identifier)
    }
}

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    /// Versions of resources are hashes; the stream's metadata says the revision.
    fn revision(_: &DeltaDiscoveryRequest) -> Option<u64> {
        None
    }

    fn frame(response: Response, identifier: &str) -> DeltaDiscoveryResponse {
        response.into_delta(identifier)
    }
}
