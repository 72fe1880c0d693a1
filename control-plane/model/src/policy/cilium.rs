//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy in the normal form.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Entity, L7, Layer, NamespaceMatch, Namespaces, NormalPolicy, NormalRule, NormalSide, PeerMatch,
    PortMatch, RuleAction, ServiceMatch, Subject, cover,
};
use crate::{
    compile::Direction,
    resource::{
        CiliumEntity, CiliumEntry, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule, CiliumSelector,
        CiliumService, CiliumSide, LabelSelector, NAMESPACE_NAME_LABEL, NamespacedName, PortRef,
    },
};

/// The namespace of a policy, empty if it is of the whole cluster; and what labels all have.
type Home<'a> = (&'a str, Namespaces<'a>);

/// Where Kubernetes' own service is.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// One normal policy for each rule of the object. `kind` is the object's, in lower case.
pub(super) fn normal(kind: &str, policy: &CiliumPolicy, all: Namespaces<'_>) -> Vec<NormalPolicy> {
    let provenance = format!("{kind}/{}", policy.meta.name);
    let spec = policy.spec.iter().map(|rule| (format!("{provenance}#"), rule));
    let specs = policy.specs.iter().enumerate().map(|(i, rule)| (format!("{provenance}#specs[{i}]."), rule));
    let own = policy.meta.name.namespace.as_str();
    spec.chain(specs).map(|(prefix, rule)| one(provenance.clone(), &prefix, (own, all), rule)).collect()
}

fn one(provenance: String, prefix: &str, home: Home<'_>, rule: &CiliumRule) -> NormalPolicy {
    let namespaces = match (home.0, &rule.subject.namespaces) {
        ("", said) => any_or(said.as_ref(), home.1),
        // What is said of namespaces holds for its own only, and may depend on the labels that it has.
        (own, Some(said)) => {
            let mut both = said.clone();
            both.match_labels.insert(NAMESPACE_NAME_LABEL.to_owned(), own.to_owned());
            home.1.select(&both)
        }
        (own, None) => NamespaceMatch::Named(own.to_owned()),
    };
    NormalPolicy {
        subject: Subject { namespaces, pods: rule.subject.pods.clone(), nodes: rule.nodes.clone() },
        ingress: side(prefix, home, Direction::Ingress, &rule.ingress),
        egress: side(prefix, home, Direction::Egress, &rule.egress),
        provenance,
    }
}

fn any_or(namespaces: Option<&LabelSelector>, all: Namespaces<'_>) -> NamespaceMatch {
    namespaces.map_or_else(|| NamespaceMatch::Selected(LabelSelector::default()), |said| all.select(said))
}

fn side(prefix: &str, home: Home<'_>, direction: Direction, side: &CiliumSide) -> Option<NormalSide> {
    let default_deny =
        side.denies_by_default().then(|| format!("{prefix}default-deny-{}", direction.as_str()));
    if default_deny.is_none() && side.allow.is_empty() && side.deny.is_empty() {
        return None;
    }
    let lists = [(RuleAction::Deny, "Deny", &side.deny), (RuleAction::Allow, "", &side.allow)];
    let rules = lists.into_iter().flat_map(|(action, suffix, entries)| {
        entries.iter().enumerate().filter(|(_, entry)| !entry.is_empty()).map(move |(i, entry)| NormalRule {
            action,
            peers: peers(entry, home),
            ports: ports(entry),
            l7: match &entry.proxy {
                Some(proxy) => Some(L7::Proxy(proxy.clone())),
                None if !entry.http.is_empty() => Some(L7::Http(entry.http.clone())),
                None => (!entry.dns.is_empty()).then(|| L7::Dns(entry.dns.clone())),
            },
            provenance: Arc::from(format!("{prefix}{}{suffix}[{i}]", direction.as_str())),
        })
    });
    Some(NormalSide { layer: Layer::Normal, audit: false, default_deny, rules: rules.collect() })
}

fn peers(entry: &CiliumEntry, home: Home<'_>) -> Vec<PeerMatch> {
    match &entry.peers {
        CiliumPeers::Unsaid => vec![PeerMatch::Any],
        CiliumPeers::Endpoints(list) => list.iter().map(|selector| workloads(selector, home)).collect(),
        CiliumPeers::Cidrs(list) => vec![PeerMatch::Outside(list.clone())],
        CiliumPeers::CidrSets(list) => {
            let blocks = list.iter().flat_map(|set| cover(set.cidr, &set.except));
            vec![PeerMatch::Outside(blocks.collect())]
        }
        CiliumPeers::Entities(list) => list.iter().flat_map(|entity| entities(*entity)).collect(),
        CiliumPeers::Services(list) => list.iter().map(|service| services(service, home.0)).collect(),
        CiliumPeers::Names(list) => vec![PeerMatch::Names(list.clone())],
    }
}

fn workloads(selector: &CiliumSelector, (own, all): Home<'_>) -> PeerMatch {
    let namespaces = match (own, &selector.namespaces) {
        ("", said) => any_or(said.as_ref(), all),
        (_, Some(said)) => all.select(said),
        (own, None) => NamespaceMatch::Named(own.to_owned()),
    };
    PeerMatch::Workloads { namespaces, pods: selector.pods.clone() }
}

fn services(service: &CiliumService, own: &str) -> PeerMatch {
    let any = || NamespaceMatch::Selected(LabelSelector::default());
    PeerMatch::Services(match service {
        CiliumService::Named { namespace, name } => {
            ServiceMatch::Named(NamespacedName::new(namespace.as_deref().unwrap_or(own), name))
        }
        CiliumService::Selected { namespace, labels } => {
            let namespace = namespace.as_deref().or(Some(own)).filter(|name| !name.is_empty());
            let namespaces = namespace.map_or_else(any, |name| NamespaceMatch::Named(name.to_owned()));
            ServiceMatch::Selected { namespaces, labels: labels.clone() }
        }
    })
}

fn entities(entity: CiliumEntity) -> Vec<PeerMatch> {
    let everything = |text: &str| text.parse::<IpNet>().ok();
    let world = |texts: &[&str]| PeerMatch::World(texts.iter().filter_map(|text| everything(text)).collect());
    match entity {
        CiliumEntity::All => vec![PeerMatch::Any],
        CiliumEntity::World => vec![PeerMatch::Entity(Entity::World)],
        CiliumEntity::WorldIpv4 => vec![world(&["0.0.0.0/0"])],
        CiliumEntity::WorldIpv6 => vec![world(&["::/0"])],
        CiliumEntity::Cluster => {
            let nodes = [Entity::RemoteNode, Entity::Host].map(PeerMatch::Entity);
            [everybody()].into_iter().chain(nodes).collect()
        }
        CiliumEntity::Mesh => vec![everybody()],
        CiliumEntity::RemoteNode => vec![PeerMatch::Entity(Entity::RemoteNode)],
        CiliumEntity::Host => vec![PeerMatch::Entity(Entity::Host)],
        CiliumEntity::Health => vec![PeerMatch::Entity(Entity::Health)],
        CiliumEntity::Unmanaged => vec![PeerMatch::Entity(Entity::Unmanaged)],
        CiliumEntity::Ingress => vec![PeerMatch::Gateways],
        CiliumEntity::KubeApiserver => {
            let (namespace, name) = API_SERVER;
            vec![PeerMatch::Services(ServiceMatch::Named(NamespacedName::new(namespace, name)))]
        }
        // A workload has traffic once its identity is known, and not before.
        CiliumEntity::Init | CiliumEntity::None => Vec::new(),
    }
}

fn everybody() -> PeerMatch {
    let namespaces = NamespaceMatch::Selected(LabelSelector::default());
    PeerMatch::Workloads { namespaces, pods: LabelSelector::default() }
}

fn ports(entry: &CiliumEntry) -> Vec<PortMatch> {
    if !entry.icmps.is_empty() {
        return entry.icmps.iter().map(|icmp| PortMatch::Icmp { v6: icmp.v6, kind: icmp.kind }).collect();
    }
    let ports: &[CiliumPort] = &entry.ports;
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
