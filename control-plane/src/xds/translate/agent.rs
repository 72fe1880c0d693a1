//! What node agents subscribe to.

use mesh_model::{
    compile::{
        Action, Direction, FlowProtocol, MeshHostPort, MeshWorkload, PolicyClass, PolicyRule, RulePeer,
    },
    identity::TrustDomain,
    records::{ClusterInfo, DomainTrust, NodeRecord},
    resource::{Protocol, ProxyMode},
};
use xds_proto::isthmus::agent::v1 as wire;

/// Where a workload is and which identity its packets have. None until its node has reported it.
pub fn workload_address(workload: &MeshWorkload) -> Option<wire::WorkloadAddress> {
    let binding = workload.binding.as_ref()?;
    Some(wire::WorkloadAddress {
        name: workload.name.to_string(),
        addresses: binding.addresses.iter().map(ToString::to_string).collect(),
        identity: workload.identity,
        spiffe_id: workload.spiffe_id.to_string(),
        node: binding.node.clone(),
    })
}

/// What a workload's own node, which is this one, needs to know of it.
pub fn local_endpoint(workload: &MeshWorkload, node: Option<&NodeRecord>) -> wire::LocalEndpoint {
    wire::LocalEndpoint {
        name: workload.name.to_string(),
        identity: workload.identity,
        spiffe_id: workload.spiffe_id.to_string(),
        policy_class: workload.policy_class,
        captured_ports: workload
            .captured_ports
            .iter()
            .map(|port| wire::CapturedPort { port: u32::from(*port), protocol: wire::Protocol::Tcp as i32 })
            .collect(),
        sidecar: workload.proxy == ProxyMode::Sidecar,
        host_ports: workload.host_ports.iter().map(host_port).collect(),
        zone: node.map(|node| node.facts.zone.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn host_port(port: &MeshHostPort) -> wire::HostPort {
    wire::HostPort {
        host_ip: port.host.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        host_port: port.host.port.into(),
        port: port.port.into(),
        protocol: protocol(port.protocol) as i32,
    }
}

/// The policy that endpoints share.
pub fn policy_class(class: &PolicyClass) -> wire::PolicyClass {
    wire::PolicyClass {
        id: class.id,
        default_deny_ingress: class.ingress_default_deny.is_some(),
        default_deny_egress: class.egress_default_deny.is_some(),
        rules: class.rules.iter().map(policy_rule).collect(),
        ingress_provenance: class.ingress_default_deny.clone().unwrap_or_default(),
        egress_provenance: class.egress_default_deny.clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn policy_rule(rule: &PolicyRule) -> wire::PolicyRule {
    let (identity, cidr) = match &rule.peer {
        RulePeer::Any => (0, String::new()),
        RulePeer::Identity(number) => (*number, String::new()),
        RulePeer::Cidr(net) => (0, net.to_string()),
    };
    let (port, end_port) = rule.ports.unwrap_or((0, 0));
    wire::PolicyRule {
        direction: match rule.direction {
            Direction::Ingress => wire::Direction::Ingress,
            Direction::Egress => wire::Direction::Egress,
        } as i32,
        action: match rule.action {
            Action::Deny => wire::Action::Deny,
            Action::Allow => wire::Action::Allow,
        } as i32,
        identity,
        cidr,
        protocol: rule.protocol.map_or(wire::Protocol::Any, spoken) as i32,
        port: u32::from(port),
        end_port: u32::from(end_port),
        provenance: rule.provenance.to_string(),
        ..Default::default()
    }
}

fn spoken(protocol: FlowProtocol) -> wire::Protocol {
    match protocol {
        FlowProtocol::Tcp => wire::Protocol::Tcp,
        FlowProtocol::Udp => wire::Protocol::Udp,
        FlowProtocol::Sctp => wire::Protocol::Sctp,
        FlowProtocol::Icmp => wire::Protocol::Icmp,
        FlowProtocol::Icmpv6 => wire::Protocol::Icmpv6,
    }
}

/// The roots of one trust domain, and what belongs to them.
pub fn trust_bundle(
    trust_domain: &TrustDomain,
    roots: &[Vec<u8>],
    trust: Option<&DomainTrust>,
) -> wire::TrustBundle {
    let trust = trust.cloned().unwrap_or_default();
    wire::TrustBundle {
        trust_domain: trust_domain.to_string(),
        roots: roots.to_vec(),
        generation: trust.generation,
        active_root: trust.active_root,
        revoked: trust.revoked.into_iter().collect(),
    }
}

/// A node, for routes to its pods.
pub fn node(node: &NodeRecord, cluster: &ClusterInfo) -> wire::Node {
    wire::Node {
        name: node.name.clone(),
        address: node.address.to_string(),
        address6: node.address6.map(|address| address.to_string()).unwrap_or_default(),
        pod_cidrs: cluster.slices(node).map(|slice| slice.to_string()).collect(),
        zone: node.facts.zone.clone(),
        region: node.facts.region.clone(),
        labels: node.labels(),
        tunnel: node.facts.tunnel.map(|tunnel| tunnel.as_str().to_owned()).unwrap_or_default(),
        health: node.facts.health.map(|at| at.to_string()).unwrap_or_default(),
        addresses: node.addresses().map(|address| address.to_string()).collect(),
    }
}

pub(super) fn protocol(protocol: Protocol) -> wire::Protocol {
    match protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    }
}
