//! Declared workloads with their identity and where they run.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{Input, MeshHostPort, MeshWorkload, scope};
use crate::{
    identity::{IdentityKey, SpiffeId},
    records::WorkloadBinding,
    resource::{NamespacedName, Object, Protocol, ProxyMode, Workload},
    view::GATEWAY_PORT,
};

pub(super) fn compile(input: &Input) -> BTreeMap<NamespacedName, MeshWorkload> {
    // A fixed address needs no report. It is bound to the node that has it (a gateway on a node's own host), or
    // to none (a VM somewhere).
    let node_at =
        |address: IpAddr| input.nodes.values().find(|node| node.is_at(address)).map(|node| node.name.clone());
    declared(input).map(|workload| (workload.meta.name.clone(), one(input, workload, &node_at))).collect()
}

/// The Workload objects, in the order of their names.
pub(super) fn declared(input: &Input) -> impl Iterator<Item = &Workload> {
    input.objects.values().filter_map(|object| match object.as_ref() {
        Object::Workload(workload) => Some(workload),
        _ => None,
    })
}

/// One workload, in no policy class yet. `node_at` finds the node that has an address; of several the first.
pub(super) fn one(
    input: &Input,
    workload: &Workload,
    node_at: &dyn Fn(IpAddr) -> Option<String>,
) -> MeshWorkload {
    let name = &workload.meta.name;
    let trust_domain = &input.cluster.trust_domain;
    let binding = match (input.bindings.get(name), workload.address) {
        (Some(binding), _) => Some(binding.clone()),
        (None, Some(address)) => Some(Arc::new(WorkloadBinding {
            node: node_at(address).unwrap_or_default(),
            addresses: vec![address],
            ready: true,
        })),
        (None, None) => None,
    };
    MeshWorkload {
        name: name.clone(),
        // 0 is "unknown" to the kernel, which drops it: `apply` has not allocated a number yet.
        identity: input.identities.lookup(&IdentityKey::of(trust_domain, workload)).unwrap_or(0),
        spiffe_id: SpiffeId::workload(trust_domain, &name.namespace, &workload.service_account),
        proxy: workload.proxy,
        policy_class: 0,
        audit: workload.meta.is_audited(),
        captured_ports: captured_ports(workload),
        readiness: workload
            .readiness
            .as_ref()
            .and_then(|probe| Some((probe.clone(), probe.port_number(&workload.ports)?))),
        host_ports: workload
            .ports
            .iter()
            .filter_map(|p| Some(MeshHostPort { host: p.host_port?, port: p.port, protocol: p.protocol }))
            .collect(),
        port_protocols: workload
            .ports
            .iter()
            .filter(|p| p.protocol == Protocol::Tcp)
            .filter_map(|p| Some((p.port, p.app_protocol?)))
            .collect(),
        gateway_port: gateway_port(workload),
        egress_scope: scope::of(input, workload),
        binding,
    }
}

/// Only declared ports are captured, because a program binds them when it starts: a port that a later Service
/// made captured would already be bound by the program itself.
fn captured_ports(workload: &Workload) -> Vec<u16> {
    if workload.proxy != ProxyMode::Sidecar {
        return Vec::new();
    }
    let mut ports: Vec<u16> =
        workload.ports.iter().filter(|p| p.protocol == Protocol::Tcp).map(|p| p.port).collect();
    ports.sort_unstable();
    ports
}

fn gateway_port(workload: &Workload) -> u16 {
    if workload.proxy != ProxyMode::Gateway {
        return 0;
    }
    let declared = workload.ports.iter().find(|p| p.protocol == Protocol::Tcp);
    declared.map_or(GATEWAY_PORT, |p| p.port)
}
