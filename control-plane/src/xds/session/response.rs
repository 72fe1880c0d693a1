//! Responses, and their framing in either protocol.

use std::sync::Arc;

use xds_proto::{
    envoy::{
        config::core::v3::ControlPlane,
        service::discovery::v3::{
            DeltaDiscoveryResponse, DiscoveryResponse, Resource, ResourceError, ResourceName,
        },
    },
    google::{protobuf::Duration, rpc::Status},
    to_any,
};

use super::request::mark;
use crate::xds::Encoded;

/// One response of one type.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Names that nothing serves, of a type whose resources have aliases: an answer, but no removal.
    pub unresolved: Vec<Arc<str>>,
    /// The names by which resources were asked for, of such a type: name of the resource, and the name asked for.
    pub aliases: Vec<(Arc<str>, Arc<str>)>,
    /// Resources whose time is prolonged, without their contents.
    pub prolonged: Vec<Arc<Encoded>>,
    /// In SotW, whether resources are wrapped, so that they can have a time and a version of their own.
    pub wrapped: bool,
    /// Names that could not be served, with the reason.
    pub errors: Vec<(Arc<str>, String)>,
}

/// `google.rpc.Code.UNIMPLEMENTED`
const UNIMPLEMENTED: i32 = 12;

impl Response {
    /// As a state-of-the-world response. The version is the revision; `control_plane` names the replica.
    pub fn into_sotw(self, control_plane: &str) -> DiscoveryResponse {
        let version = self.revision.to_string();
        let wrap = |resource: &Encoded, body: bool| {
            // Envoy takes a heartbeat for one if its version is that of the response that it has accepted.
            let version = version.clone();
            to_any(&Resource { version, ..self.resource(resource, body) })
        };
        let whole = self.resources.iter().map(|resource| match resource.ttl.filter(|_| self.wrapped) {
            Some(_) => wrap(resource, true),
            None => resource.any.clone(),
        });
        let prolonged = self.prolonged.iter().map(|resource| wrap(resource, false));
        let resources = whole.chain(prolonged).collect();
        DiscoveryResponse {
            resources,
            resource_errors: self.resource_errors(),
            version_info: version,
            type_url: self.type_url.to_string(),
            nonce: self.nonce.clone(),
            control_plane: Some(ControlPlane { identifier: control_plane.to_owned() }),
            ..Default::default()
        }
    }

    /// As an incremental response. The system version is the revision; `control_plane` names the replica.
    pub fn into_delta(self, control_plane: &str) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.revision.to_string(),
            resources: self.delta_resources(),
            resource_errors: self.resource_errors(),
            type_url: self.type_url.to_string(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
            nonce: self.nonce.clone(),
            control_plane: Some(ControlPlane { identifier: control_plane.to_owned() }),
            ..Default::default()
        }
    }

    fn delta_resources(&self) -> Vec<Resource> {
        let whole = self.resources.iter().map(|resource| self.resource(resource, true));
        let prolonged = self.prolonged.iter().map(|resource| self.resource(resource, false));
        // Envoy looks the names that it waits for up among names and aliases, and finds no host.
        let unresolved = self.unresolved.iter().map(|name| Resource {
            name: name.to_string(),
            aliases: vec![name.to_string()],
            version: self.revision.to_string(),
            ..Default::default()
        });
        whole.chain(prolonged).chain(unresolved).collect()
    }

    fn resource(&self, resource: &Encoded, body: bool) -> Resource {
        let aliases = self.aliases.iter().filter(|(name, _)| *name == resource.name);
        Resource {
            name: resource.name.to_string(),
            aliases: aliases.map(|(_, alias)| alias.to_string()).collect(),
            version: match resource.ttl {
                Some(_) => resource.version.to_string(),
                None => format!("{}{}", resource.version, mark(self.revision)),
            },
            resource: body.then(|| resource.any.clone()),
            ttl: resource.ttl.map(|ttl| Duration {
                seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(ttl.subsec_nanos()).unwrap_or(0),
            }),
            ..Default::default()
        }
    }

    fn resource_errors(&self) -> Vec<ResourceError> {
        let error = |(name, reason): &(Arc<str>, String)| ResourceError {
            resource_name: Some(ResourceName { name: name.to_string(), ..Default::default() }),
            error_detail: Some(Status { code: UNIMPLEMENTED, message: reason.clone(), details: Vec::new() }),
        };
        self.errors.iter().map(error).collect()
    }
}
