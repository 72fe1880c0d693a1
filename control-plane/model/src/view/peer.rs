//! The view of another cluster: what this one exports, and nothing of its insides. The federation protocol's
//! own crate turns it into messages.

use std::net::SocketAddr;

use super::gateway::gateway_addresses;
use crate::{
    compile::{MeshModel, MeshService},
    records::ClusterInfo,
};

/// What a peer is to have.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct PeerView<'a> {
    pub revision: u64,
    pub cluster: &'a ClusterInfo,
    /// Gateways that are declared as workloads.
    pub gateways: Vec<SocketAddr>,
    /// Offered services. Of these, only what this cluster itself serves may be told: each cluster speaks for
    /// its own endpoints.
    pub exported: Vec<&'a MeshService>,
}

/// What this peer is to have. None: no such peer has joined.
pub fn for_peer<'a>(model: &'a MeshModel, peer: &str) -> Option<PeerView<'a>> {
    model.peers.contains_key(peer).then(|| PeerView {
        revision: model.revision,
        cluster: &model.cluster,
        gateways: gateway_addresses(model),
        exported: model
            .index
            .exported()
            .filter_map(|name| model.services.get(name))
            .map(|s| s.as_ref())
            .collect(),
    })
}
