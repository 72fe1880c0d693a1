//! What node agents subscribe to.

use mesh_model::{
    compile::{
        Action, Direction, FlowProtocol, GroupPeers, MeshHostPort, MeshWorkload, PolicyClass, RuleGroup,
        RulePeer,
    },
    identity::TrustDomain,
    policy::{Entity, L7, NamePattern},
    records::{ClusterInfo, DomainTrust, NodeRecord},
    resource::{Protocol, ProxyMode, Readiness},
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
        audit: workload.audit,
        readiness: workload.readiness.as_ref().map(|(probe, port)| readiness(probe, *port)),
    }
}

fn readiness(probe: &Readiness, port: u16) -> wire::Readiness {
    let port = u32::from(port);
    let (tcp_port, http_port) = if probe.http_path.is_some() { (0, port) } else { (port, 0) };
    wire::Readiness {
        tcp_port,
        http_port,
        http_path: probe.http_path.clone().unwrap_or_default(),
        period_ms: probe.period_seconds * 1000,
        failures: probe.failures,
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

/// The host network of a node, if a policy selects the node.
pub fn host_endpoint(node: &str, record: Option<&NodeRecord>, class: u32) -> wire::HostEndpoint {
    let audit = record.is_some_and(NodeRecord::is_audited);
    wire::HostEndpoint { node: node.to_owned(), identity: 0, policy_class: class, audit }
}

/// The policy that endpoints share.
pub fn policy_class(class: &PolicyClass) -> wire::PolicyClass {
    wire::PolicyClass {
        id: class.id,
        default_deny_ingress: class.ingress_default_deny.is_some(),
        default_deny_egress: class.egress_default_deny.is_some(),
        rules: class.groups().iter().flat_map(policy_rules).collect(),
        ingress_provenance: class.ingress_default_deny.clone().unwrap_or_default(),
        egress_provenance: class.egress_default_deny.clone().unwrap_or_default(),
        audit_ingress_default: class.ingress_audit_default.is_some(),
        audit_egress_default: class.egress_audit_default.is_some(),
        audit_ingress_provenance: class.ingress_audit_default.clone().unwrap_or_default(),
        audit_egress_provenance: class.egress_audit_default.clone().unwrap_or_default(),
    }
}

/// One rule, or one for each type of ICMP that it is about.
fn policy_rules(group: &RuleGroup<'_>) -> Vec<wire::PolicyRule> {
    let rule = group.rule;
    let typed = matches!(rule.protocol, Some(FlowProtocol::Icmp | FlowProtocol::Icmpv6));
    let (port, end_port) = rule.ports.filter(|_| !typed).unwrap_or((0, 0));
    let mut message = wire::PolicyRule {
        direction: match rule.direction {
            Direction::Ingress => wire::Direction::Ingress,
            Direction::Egress => wire::Direction::Egress,
        } as i32,
        protocol: rule.protocol.map_or(wire::Protocol::Any, spoken) as i32,
        port: u32::from(port),
        end_port: u32::from(end_port),
        provenance: rule.provenance.to_string(),
        audit: rule.audit,
        l7: rule.l7.as_ref().map(l7),
        ..Default::default()
    };
    match (&group.peers, &rule.peer) {
        (GroupPeers::Identities(all), _) => message.identities.clone_from(all),
        (GroupPeers::Cidrs(all), _) => message.cidrs = all.iter().map(ToString::to_string).collect(),
        (GroupPeers::One, RulePeer::Any) => {}
        (GroupPeers::One, RulePeer::Identity(number)) => message.identity = *number,
        (GroupPeers::One, RulePeer::Cidr(net)) => message.cidr = net.to_string(),
        (GroupPeers::One, RulePeer::Entity(known)) => message.entity = entity(*known) as i32,
        (GroupPeers::One, RulePeer::Name(pattern)) => message.name = Some(name(pattern)),
    }
    let mut all: Vec<wire::PolicyRule> = match rule.ports.filter(|_| typed) {
        // Types are whole, whatever tiers make of them.
        Some((first, last)) if (first, last) != (0, u16::MAX) => {
            let types = first >> 8..=last >> 8;
            types.map(|kind| wire::PolicyRule { icmp_type: u32::from(kind) + 1, ..message.clone() }).collect()
        }
        _ => vec![message],
    };
    all.iter_mut().for_each(|message| message.action = action(rule.action, message) as i32);
    all
}

/// Whoever does not know all that a rule says would read it as wider than it is: so the action is one that is refused then.
fn action(action: Action, rule: &wire::PolicyRule) -> wire::Action {
    if !rule.identities.is_empty() || !rule.cidrs.is_empty() {
        return match action {
            Action::Deny => wire::Action::GroupDeny,
            Action::Allow => wire::Action::GroupAllow,
        };
    }
    let qualified = rule.entity != wire::Entity::NoEntity as i32
        || rule.name.is_some()
        || rule.audit
        || rule.icmp_type != 0
        || rule.icmp_code != 0
        || rule.l7.is_some();
    match (action, qualified) {
        (Action::Deny, false) => wire::Action::Deny,
        (Action::Allow, false) => wire::Action::Allow,
        (Action::Deny, true) => wire::Action::QualifiedDeny,
        (Action::Allow, true) => wire::Action::QualifiedAllow,
    }
}

fn entity(entity: Entity) -> wire::Entity {
    match entity {
        Entity::World => wire::Entity::World,
        Entity::Host => wire::Entity::Host,
        Entity::RemoteNode => wire::Entity::RemoteNode,
        Entity::Health => wire::Entity::Health,
        Entity::Unmanaged => wire::Entity::Unmanaged,
        Entity::Workloads => wire::Entity::Mesh,
    }
}

fn name(pattern: &NamePattern) -> wire::NamePattern {
    let text = pattern.as_str().to_owned();
    match pattern.is_exact() {
        true => wire::NamePattern { name: text, ..Default::default() },
        false => wire::NamePattern { pattern: text, ..Default::default() },
    }
}

fn l7(l7: &L7) -> wire::L7 {
    match l7 {
        L7::Proxy(proxy) => wire::L7 { proxy: proxy.clone(), ..Default::default() },
        // What is let through is that proxy's matter.
        L7::Http(_) => wire::L7 { proxy: mesh_model::policy::NODE_PROXY.to_owned(), ..Default::default() },
        L7::Dns(names) => wire::L7 { dns: names.iter().map(name).collect(), ..Default::default() },
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
        jwt_keys: trust.jwt_keys,
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

#[cfg(test)]
mod tests {
    use mesh_model::compile::PolicyRule;

    use super::*;

    fn rule(peer: RulePeer) -> PolicyRule {
        PolicyRule {
            direction: Direction::Egress,
            action: Action::Allow,
            peer,
            protocol: None,
            ports: None,
            audit: false,
            l7: None,
            provenance: "networkpolicy/shop/p#egress[0]".into(),
        }
    }

    fn told(rule: PolicyRule) -> Vec<wire::PolicyRule> {
        told_all(vec![rule])
    }

    fn told_all(rules: Vec<PolicyRule>) -> Vec<wire::PolicyRule> {
        let class = PolicyClass {
            id: 7,
            egress_audit_default: Some("networkpolicy/shop/p#default-deny-egress".to_owned()),
            rules,
            ..PolicyClass::default()
        };
        let told = policy_class(&class);
        assert!(told.audit_egress_default && !told.default_deny_egress && !told.audit_ingress_default);
        told.rules
    }

    /// What an agent that knows the fields up to 8 makes of a rule: it refuses actions that it does not know.
    fn is_read_by_old_agents(rule: &wire::PolicyRule) -> bool {
        matches!(rule.action(), wire::Action::Deny | wire::Action::Allow)
    }

    #[test]
    fn a_rule_that_says_more_than_old_agents_know_is_one_that_they_refuse() {
        let names = || vec![NamePattern::parse("*.example").unwrap()];
        for plain in [RulePeer::Any, RulePeer::Identity(300), RulePeer::Cidr("10.0.0.0/8".parse().unwrap())] {
            assert!(told(rule(plain.clone())).iter().all(is_read_by_old_agents));
            let ports =
                PolicyRule { protocol: Some(FlowProtocol::Tcp), ports: Some((1, 9)), ..rule(plain.clone()) };
            assert!(told(ports).iter().all(is_read_by_old_agents));
            let further = [
                PolicyRule { audit: true, ..rule(plain.clone()) },
                PolicyRule { audit: true, action: Action::Deny, ..rule(plain.clone()) },
                PolicyRule { l7: Some(L7::Dns(names())), ..rule(plain.clone()) },
                PolicyRule { protocol: Some(FlowProtocol::Icmp), ports: Some((0x800, 0x8ff)), ..rule(plain) },
            ];
            for rule in further {
                assert!(!told(rule).iter().any(is_read_by_old_agents));
            }
        }
        let entities = [
            Entity::World,
            Entity::Host,
            Entity::RemoteNode,
            Entity::Health,
            Entity::Unmanaged,
            Entity::Workloads,
        ];
        let peers = entities.map(RulePeer::Entity).into_iter().chain(names().into_iter().map(RulePeer::Name));
        for peer in peers {
            for action in [Action::Allow, Action::Deny] {
                let rules = told(PolicyRule { action, ..rule(peer.clone()) });
                assert_eq!((rules[0].identity, rules[0].cidr.as_str()), (0, ""));
                assert!(!rules.iter().any(is_read_by_old_agents), "{peer:?}");
            }
        }
    }

    #[test]
    fn peers_with_the_same_rule_are_told_in_one_that_old_agents_refuse() {
        let identities = (300..20_300).map(RulePeer::Identity);
        let cidrs = ["10.0.0.0/8", "192.0.2.0/24"].map(|net| RulePeer::Cidr(net.parse().unwrap()));
        for action in [Action::Allow, Action::Deny] {
            let rules = identities.clone().chain(cidrs.clone());
            let rules = told_all(rules.map(|peer| PolicyRule { action, ..rule(peer) }).collect());
            assert_eq!(rules.len(), 2);
            assert_eq!((rules[0].identities.len(), rules[0].identity), (20_000, 0));
            assert_eq!((rules[1].cidrs.len(), rules[1].cidr.as_str()), (2, ""));
            let known = [0, 1, 2, 3];
            assert!(rules.iter().all(|rule| !known.contains(&rule.action)), "{action:?}");
        }
    }

    #[test]
    fn a_range_of_types_of_icmp_is_told_type_by_type() {
        let of = |ports| {
            let rule = PolicyRule { protocol: Some(FlowProtocol::Icmpv6), ports, ..rule(RulePeer::Any) };
            told(rule).iter().map(|rule| (rule.icmp_type, rule.port)).collect::<Vec<_>>()
        };
        assert_eq!(of(Some((128 << 8, 128 << 8 | 0xff))), [(129, 0)]);
        assert_eq!(of(Some((0, 0x2ff))), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(of(Some((0, u16::MAX))), [(0, 0)]);
        assert_eq!(of(None), [(0, 0)]);
    }

    #[test]
    fn names_are_told_as_what_they_are() {
        let of = |text: &str| {
            let rules = told(rule(RulePeer::Name(NamePattern::parse(text).unwrap())));
            let name = rules[0].name.clone().unwrap();
            (name.name, name.pattern)
        };
        assert_eq!(of("a.example"), ("a.example".to_owned(), String::new()));
        assert_eq!(of("*.example"), (String::new(), "*.example".to_owned()));
    }
}
