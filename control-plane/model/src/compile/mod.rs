//! State in, mesh out. One file per part of the mesh; none of them reads what another one made, but for the
//! workloads, which all of them name.

#[cfg(test)]
mod cilium_tests;
mod class;
#[cfg(test)]
mod cluster_tests;
mod diff;
mod evaluate;
mod flatten;
#[cfg(test)]
mod generate_cilium;
#[cfg(test)]
mod generate_cluster;
#[cfg(test)]
mod generate_network;
mod incremental;
#[cfg(test)]
mod incremental_tests;
mod index;
mod model;
mod policy;
#[cfg(test)]
mod policy_tests;
mod routes;
mod scan;
mod scope;
#[cfg(test)]
mod scope_tests;
#[cfg(test)]
mod service_tests;
mod services;
mod size;
mod workloads;
#[cfg(test)]
pub(crate) mod world;

pub use diff::{Changes, ModelDiff, diff};
pub use evaluate::{ClassPeer, OWN_NODE, decide};
pub use flatten::UNDECIDED;
pub use incremental::Compiler;
pub use index::{Account, ModelIndex, Serves};
pub use model::*;
pub use scope::ROOT_NAMESPACE;
pub use size::{FullNode, GroupPeers, RuleGroup, TooLarge, may_be_too_large, too_large};

use std::sync::Arc;

use class::Numbering;

/// Compiles everything anew: slow, obvious, and what the [`Compiler`] is tested against.
pub fn compile(input: &Input) -> MeshModel {
    compile_numbered(input, Numbering::default())
}

fn compile_numbered(input: &Input, numbering: Numbering) -> MeshModel {
    let mut workloads = workloads::compile(input);
    let (policy_classes, host_classes) = policy::compile(input, &mut workloads, numbering);
    let services = scan::services(input, &workloads);
    let mut index = ModelIndex::default();
    workloads.values().for_each(|workload| index.workload(None, Some(workload)));
    services.values().for_each(|service| index.service(None, Some(service)));
    policy_classes.iter().for_each(|(id, class)| index.class(*id, None, Some(class)));
    MeshModel {
        revision: input.revision,
        cluster: input.cluster.clone(),
        nodes: input.nodes.clone(),
        workloads: workloads.into_iter().map(|(name, workload)| (name, Arc::new(workload))).collect(),
        services: services.into_iter().map(|(name, service)| (name, Arc::new(service))).collect(),
        policy_classes: policy_classes.into_iter().map(|(id, class)| (id, Arc::new(class))).collect(),
        host_classes,
        peers: input.peers.clone(),
        egress_scopes: scope::all(input),
        index,
    }
}
