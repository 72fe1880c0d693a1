//! Responses, and their framing in either protocol.

use std::sync::Arc;

use xds_proto::envoy::{
    config::core::v3::ControlPlane,
    service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource},
};

use crate::xds::Encoded;

/// One response of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Full type URL.
    pub type_url: Arc<str>,
    /// Names it in the client's answer.
    pub nonce: String,
    /// The revision that it was made from.
    pub revision: u64,
    /// Resources, shared.
    pub resources: Vec<Arc<Encoded>>,
    /// Names that don't exist (any more). In SotW these are not said but left out.
    pub removed: Vec<Arc<str>>,
}

impl Response {
    /// As a state-of-the-world response. The version is the revision; `control_plane` names the replica.
    pub fn into_sotw(self, control_plane: &str) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: self.revision.to_string(),
            resources: self.resources.iter().map(|resource| resource.any.clone()).collect(),
            type_url: self.type_url.to_string(),
            nonce: self.nonce,
            control_plane: Some(ControlPlane { identifier: control_plane.to_owned() }),
            ..Default::default()
        }
    }

    /// As an incremental response. The system version is the revision; `control_plane` names the replica.
    pub fn into_delta(self, control_plane: &str) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.revision.to_string(),
            resources: self.resources.iter().map(|resource| delta_resource(resource)).collect(),
            type_url: self.type_url.to_string(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
            nonce: self.nonce,
            control_plane: Some(ControlPlane { identifier: control_plane.to_owned() }),
            ..Default::default()
        }
    }
}

fn delta_resource(resource: &Encoded) -> Resource {
    Resource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(resource.any.clone()),
        ..Default::default()
    }
}
