//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy in the normal form.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Layer, NamespaceMatch, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch, RuleAction, Subject,
    cover,
};
use crate::{
    compile::Direction,
    resource::{
        CiliumEntity, CiliumEntry, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule, CiliumSelector,
        CiliumSide, LabelSelector, PortRef,
    },
};

/// One normal policy for each rule of the object. `kind` is the object's, in lower case.
pub(super) fn normal(kind: &str, policy: &CiliumPolicy) -> Vec<NormalPolicy> {
    let provenance = format!("{kind}/{}", policy.meta.name);
    let spec = policy.spec.iter().map(|rule| (format!("{provenance}#"), rule));
    let specs = policy.specs.iter().enumerate().map(|(i, rule)| (format!("{provenance}#specs[{i}]."), rule));
    let own = policy.meta.name.namespace.as_str();
    spec.chain(specs).map(|(prefix, rule)| one(provenance.clone(), &prefix, own, rule)).collect()
}

fn one(provenance: String, prefix: &str, own: &str, rule: &CiliumRule) -> NormalPolicy {
    let namespaces = match own {
        "" => any_or(rule.subject.namespaces.as_ref()),
        // What the selector says of namespaces holds for its own: that was seen to when it was parsed.
        own => NamespaceMatch::Named(own.to_owned()),
    };
    NormalPolicy {
        subject: Subject { namespaces, pods: rule.subject.pods.clone() },
        ingress: side(prefix, own, Direction::Ingress, &rule.ingress),
        egress: side(prefix, own, Direction::Egress, &rule.egress),
        provenance,
    }
}

fn any_or(namespaces: Option<&LabelSelector>) -> NamespaceMatch {
    NamespaceMatch::Selected(namespaces.cloned().unwrap_or_default())
}

fn side(prefix: &str, own: &str, direction: Direction, side: &CiliumSide) -> Option<NormalSide> {
    let default_deny =
        side.denies_by_default().then(|| format!("{prefix}default-deny-{}", direction.as_str()));
    if default_deny.is_none() && side.allow.is_empty() && side.deny.is_empty() {
        return None;
    }
    let lists = [(RuleAction::Deny, "Deny", &side.deny), (RuleAction::Allow, "", &side.allow)];
    let rules = lists.into_iter().flat_map(|(action, suffix, entries)| {
        entries.iter().enumerate().filter(|(_, entry)| !entry.is_empty()).map(move |(i, entry)| NormalRule {
            action,
            peers: peers(entry, own),
            ports: ports(&entry.ports),
            provenance: Arc::from(format!("{prefix}{}{suffix}[{i}]", direction.as_str())),
        })
    });
    Some(NormalSide { layer: Layer::Normal, default_deny, rules: rules.collect() })
}

fn peers(entry: &CiliumEntry, own: &str) -> Vec<PeerMatch> {
    match &entry.peers {
        CiliumPeers::Unsaid => vec![PeerMatch::Any],
        CiliumPeers::Endpoints(list) => list.iter().map(|selector| workloads(selector, own)).collect(),
        CiliumPeers::Cidrs(list) => vec![PeerMatch::Outside(list.clone())],
        CiliumPeers::CidrSets(list) => {
            let blocks = list.iter().flat_map(|set| cover(set.cidr, &set.except));
            vec![PeerMatch::Outside(blocks.collect())]
        }
        CiliumPeers::Entities(list) => list.iter().flat_map(|entity| entities(*entity)).collect(),
    }
}

fn workloads(selector: &CiliumSelector, own: &str) -> PeerMatch {
    let namespaces = match (own, &selector.namespaces) {
        ("", said) => any_or(said.as_ref()),
        (_, Some(said)) => NamespaceMatch::Selected(said.clone()),
        (own, None) => NamespaceMatch::Named(own.to_owned()),
    };
    PeerMatch::Workloads { namespaces, pods: selector.pods.clone() }
}

fn entities(entity: CiliumEntity) -> Vec<PeerMatch> {
    let everything = |text: &str| text.parse::<IpNet>().ok();
    let world = |texts: &[&str]| PeerMatch::World(texts.iter().filter_map(|text| everything(text)).collect());
    match entity {
        CiliumEntity::All => vec![PeerMatch::Any],
        CiliumEntity::World => vec![world(&["0.0.0.0/0", "::/0"])],
        CiliumEntity::WorldIpv4 => vec![world(&["0.0.0.0/0"])],
        CiliumEntity::WorldIpv6 => vec![world(&["::/0"])],
        CiliumEntity::Cluster => {
            let namespaces = NamespaceMatch::Selected(LabelSelector::default());
            vec![PeerMatch::Workloads { namespaces, pods: LabelSelector::default() }, PeerMatch::Nodes]
        }
        CiliumEntity::RemoteNode => vec![PeerMatch::Nodes],
        // A workload's own node is always admitted, and health checks come from there.
        CiliumEntity::Host | CiliumEntity::Health | CiliumEntity::None => Vec::new(),
    }
}

fn ports(ports: &[CiliumPort]) -> Vec<PortMatch> {
    if ports.is_empty() {
        return vec![PortMatch::Any];
    }
    let of = |port: &CiliumPort| -> Vec<PortMatch> {
        let one = |protocol| match &port.port {
            None => PortMatch::Range { protocol, ports: None },
            Some(PortRef::Number(first)) => {
                PortMatch::Range { protocol, ports: Some((*first, port.end_port.unwrap_or(*first))) }
            }
            Some(PortRef::Name(name)) => PortMatch::Named { protocol, name: name.clone() },
        };
        port.protocols().iter().copied().map(one).collect()
    };
    ports.iter().flat_map(of).collect()
}
