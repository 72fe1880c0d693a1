//! The view of a node's agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::trust_bundles;
use crate::{
    compile::{MeshModel, MeshService, MeshWorkload, PolicyClass},
    identity::TrustDomain,
    records::NodeRecord,
};

/// Borrowed from the model; every list is in the order of names.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentView<'a> {
    /// Every workload that has an address (`WorkloadAddress`).
    pub workloads: Vec<&'a MeshWorkload>,
    /// Those that run on this node (`LocalEndpoint`).
    pub local: Vec<&'a MeshWorkload>,
    /// Those that a workload of this node has.
    pub policy_classes: Vec<&'a PolicyClass>,
    /// Every service. Its backends for packets are [`crate::compile::MeshServicePort::packet_backends`].
    pub services: Vec<&'a MeshService>,
    #[allow(missing_docs)]
    pub trust_bundles: BTreeMap<TrustDomain, Vec<Vec<u8>>>,
    #[allow(missing_docs)]
    pub nodes: Vec<&'a NodeRecord>,
}

/// What the agent of this node is to have. A node that is not registered has no local workloads.
pub fn for_agent<'a>(model: &'a MeshModel, node: &str) -> AgentView<'a> {
    let workloads = model.workloads.values().map(Arc::as_ref).filter(|w| has_address(w)).collect();
    let local = local_workloads(model, node);
    let classes: BTreeSet<u32> = local.iter().map(|w| w.policy_class).collect();
    AgentView {
        workloads,
        policy_classes: classes
            .iter()
            .filter_map(|id| model.policy_classes.get(id))
            .map(Arc::as_ref)
            .collect(),
        local,
        services: model.services.values().map(Arc::as_ref).collect(),
        trust_bundles: trust_bundles(model),
        nodes: model.nodes.values().map(Arc::as_ref).collect(),
    }
}

/// Whether packets to and from a workload can be told.
pub fn has_address(workload: &MeshWorkload) -> bool {
    workload.binding.as_ref().is_some_and(|binding| !binding.addresses.is_empty())
}

/// The workloads that run on a node: none if it is not registered.
pub fn local_workloads<'a>(model: &'a MeshModel, node: &str) -> Vec<&'a MeshWorkload> {
    let registered = model.nodes.contains_key(node);
    let on_node = model.index.on_node(node).filter(|_| registered);
    on_node.filter_map(|name| model.workloads.get(name)).map(Arc::as_ref).collect()
}
