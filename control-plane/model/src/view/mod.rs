//! What each client is to have. A view is a selection from the compiled mesh: plain data under the names that
//! its client subscribes to, which `control-plane/src/xds/translate` turns into protobuf one to one.
//!
//! Nobody receives what only concerns somebody else: an agent gets local endpoints and policy of its own node
//! only, a sidecar its own inbound configuration and the services of its scope only, a peer exported services only.
//! One choice is wide on purpose: every agent gets the addresses and identities of all workloads, against which it
//! enforces policy, and all services, for the workloads that have no proxy.

mod access;
#[cfg(test)]
mod access_tests;
mod agent;
mod gateway;
mod grpc;
pub mod names;
mod node_proxy;
mod peer;
mod reader;
mod scope;
mod sidecar;

pub use access::{Access, AccessRule, Caller, access};
pub use agent::{AgentView, for_agent, has_address, local_workloads};
pub use gateway::{GATEWAY_PORT, GatewayView, Passthrough, for_gateway, gateway_addresses, passthroughs_of};
pub use grpc::{GrpcTarget, GrpcView, for_grpc, has_grpc, targets_of};
pub use node_proxy::{LedCluster, LedPort, NodeProxyView, for_node_proxy, is_led, of_family};
pub use peer::{PeerView, for_peer};
pub use reader::{Destinations, ReadRule, Reader, readers};
pub use scope::{Reach, Scope};
pub use sidecar::{
    InboundListener, OutboundCluster, OutboundListener, SidecarView, for_sidecar, inbound_of, outbound_of,
    tcp_ports,
};

use std::collections::BTreeMap;

use crate::{compile::MeshModel, identity::TrustDomain};

/// The roots of every trust domain that a certificate may come from: the own and every peer's. A peer that
/// claims the own trust domain, or another peer's, is left out: it would speak for others.
pub fn trust_bundles(model: &MeshModel) -> BTreeMap<TrustDomain, Vec<Vec<u8>>> {
    let mut bundles = BTreeMap::from([(model.cluster.trust_domain.clone(), model.cluster.roots.clone())]);
    for peer in model.peers.values() {
        bundles.entry(peer.trust_domain.clone()).or_insert_with(|| peer.roots.clone());
    }
    bundles
}
