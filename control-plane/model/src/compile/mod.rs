//! State in, mesh out. One file per part of the mesh; none of them reads what another one made, but for the
//! workloads, which all of them name.

mod diff;
mod evaluate;
mod model;
mod policy;
#[cfg(test)]
mod policy_tests;
mod routes;
#[cfg(test)]
mod service_tests;
mod services;
mod workloads;
#[cfg(test)]
pub(crate) mod world;

pub use diff::{Changes, ModelDiff, diff};
pub use evaluate::{ClassPeer, decide};
pub use model::*;

use crate::resource::ObjectKey;

/// Compiles without knowing how old objects are: where age decides, names do.
pub fn compile(input: Input<'_>) -> MeshModel {
    compile_with(input, &|_| None)
}

/// Compiles; `created` gives an object's creation time in Unix seconds. The older HTTPRoute wins a tie (Gateway
/// API).
pub fn compile_with(input: Input<'_>, created: &dyn Fn(&ObjectKey) -> Option<u64>) -> MeshModel {
    let mut workloads = workloads::compile(&input);
    let policy_classes = policy::compile(&input, &mut workloads);
    let mut services = services::compile(&input, &workloads);
    routes::attach(&input, &mut services, created);
    MeshModel {
        revision: input.revision,
        cluster: input.cluster.clone(),
        nodes: input.nodes.clone(),
        workloads,
        services,
        policy_classes,
        peers: input.peers.clone(),
    }
}
