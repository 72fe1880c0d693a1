//! A question for what clients were sent: which clients it means is the asker's to say, regular expressions included.

use control_plane::xds::csds::matcher::Matchers;
use xds_proto::{Message, envoy::service::status::v3::ClientStatusRequest};

pub(crate) fn csds(bytes: &[u8]) {
    let Ok(request) = ClientStatusRequest::decode(bytes) else { return };
    let everybody = request.node_matchers.is_empty();
    let Ok(matchers) = Matchers::new(request.node_matchers) else { return };
    // The asker's own description stands for a client's.
    let node = request.node.unwrap_or_default();
    let meant = matchers.matches(&node, "envoy~shop/web");
    assert!(meant || !everybody, "no matcher means everybody");
    assert_eq!(matchers.matches(&node, "envoy~shop/web"), meant, "the same question has the same answer");
}
