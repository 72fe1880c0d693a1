//! The plain types that every policy language parses into, and NetworkPolicy in them.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::{NamePattern, NamespaceMatch, Namespaces, cilium, cluster, cover};
use crate::{
    compile::{Direction, FlowProtocol},
    resource::{
        HttpRule, LabelSelector, Labels, NamespacedName, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicyRule, Object, PortRef, Protocol, Service,
    },
};

/// One policy: an object, or one rule of an object that has several subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct NormalPolicy {
    /// `networkpolicy/<ns>/<name>`
    pub provenance: String,
    pub subject: Subject,
    /// None: the policy says nothing about this direction.
    pub ingress: Option<NormalSide>,
    pub egress: Option<NormalSide>,
}

/// Whom a policy selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Subject {
    pub namespaces: NamespaceMatch,
    pub pods: LabelSelector,
    /// Nodes, by their labels, instead of workloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
}

impl Subject {
    /// Whether it selects a workload.
    pub fn matches(&self, namespace: &str, labels: &Labels) -> bool {
        self.nodes.is_none() && self.namespaces.matches(namespace) && self.pods.matches(labels)
    }

    /// Whether it selects a node.
    pub fn selects_node(&self, labels: &Labels) -> bool {
        self.nodes.as_ref().is_some_and(|nodes| nodes.matches(labels))
    }
}

/// What a policy says of one direction of the workloads it selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NormalSide {
    /// When it is asked.
    #[serde(skip_serializing_if = "Layer::is_normal")]
    pub layer: Layer,
    /// Of a policy that is audited: it enforces nothing, and what it would deny is told of.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Provenance of the denial of what no rule permits. None: the policy denies nothing but what its rules do.
    pub default_deny: Option<String>,
    #[allow(missing_docs)]
    pub rules: Vec<NormalRule>,
}

/// Where a policy stands among others: the lower goes first. Within one layer and priority the order is that of the names of
/// the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Layer {
    /// Its rules are tried one after the other, and the first that matches decides.
    Admin(u16),
    /// Its rules are asked together: any that denies, else any that allows.
    Normal,
    /// As `Admin`, for what has not been decided.
    Baseline(u16),
}

impl Layer {
    fn is_normal(&self) -> bool {
        *self == Layer::Normal
    }
}

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum RuleAction {
    Deny,
    Allow,
    /// The tier has nothing more to say. Never of [`Layer::Normal`].
    Pass,
}

/// Matches when one of the peers and one of the ports match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct NormalRule {
    pub action: RuleAction,
    pub peers: Vec<PeerMatch>,
    pub ports: Vec<PortMatch>,
    /// It allows only what this admits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l7: Option<L7>,
    pub provenance: Arc<str>,
}

/// What somebody who reads the traffic judges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum L7 {
    /// The proxy of this name, of the workload's node.
    Proxy(String),
    /// Names that may be asked for.
    Dns(Vec<NamePattern>),
    /// Requests that the node's proxy [`NODE_PROXY`] lets through: those that one of these matches.
    Http(Vec<HttpRule>),
}

/// Who reads what [`L7::Http`] says, on every node.
pub const NODE_PROXY: &str = "node-proxy";

/// Who the other end is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PeerMatch {
    /// Anybody, in the mesh or outside.
    Any,
    /// Workloads of this cluster.
    Workloads {
        #[allow(missing_docs)]
        namespaces: NamespaceMatch,
        #[allow(missing_docs)]
        pods: LabelSelector,
    },
    /// Addresses outside the mesh.
    Outside(Vec<IpNet>),
    /// Addresses outside the mesh that are no node's either.
    World(Vec<IpNet>),
    #[allow(missing_docs)]
    Entity(Entity),
    /// Workloads that are gateways, where nobody else has their identity.
    Gateways,
    /// The endpoints of services of this cluster.
    Services(ServiceMatch),
    /// Addresses outside the mesh that DNS has answered for such a name. Of egress rules.
    Names(Vec<NamePattern>),
    /// Addresses outside the mesh; and all workloads, if one of the blocks holds the range of all pods.
    Networks(Vec<IpNet>),
}

/// Who is known without labels or addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Entity {
    /// Addresses outside the mesh that are no node's.
    World,
    /// The node that the subject runs on.
    Host,
    /// The other nodes of the cluster.
    RemoteNode,
    /// What asks after the health of workloads: their own node.
    Health,
    /// Addresses among the pods' that no workload has.
    Unmanaged,
    /// Every workload. Of compiled rules: policies select them like others.
    Workloads,
}

/// Services, by name or by their labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum ServiceMatch {
    Named(NamespacedName),
    Selected { namespaces: NamespaceMatch, labels: LabelSelector },
}

impl ServiceMatch {
    #[allow(missing_docs)]
    pub fn matches(&self, service: &Service) -> bool {
        let name = &service.meta.name;
        match self {
            ServiceMatch::Named(wanted) => wanted == name,
            ServiceMatch::Selected { namespaces, labels } => {
                namespaces.matches(&name.namespace) && labels.matches(&service.meta.labels)
            }
        }
    }
}

/// Which destination port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum PortMatch {
    /// Any protocol, also those without ports.
    Any,
    /// Inclusive; None: every port of the protocol.
    Range { protocol: Protocol, ports: Option<(u16, u16)> },
    /// What the destination workload calls so.
    Named { protocol: Protocol, name: String },
    /// A type of ICMP.
    Icmp { v6: bool, kind: u8 },
}

/// What stands in the place of ports where there are none: a type of ICMP, with every code. (A flow's is
/// `type << 8 | code`.)
pub(crate) fn icmp(v6: bool, kind: u8) -> (FlowProtocol, (u16, u16)) {
    let first = u16::from(kind) << 8;
    (if v6 { FlowProtocol::Icmpv6 } else { FlowProtocol::Icmp }, (first, first | 0xff))
}

impl NormalPolicy {
    /// What an object says of policy, where namespaces have these labels: nothing, unless it is of a policy kind.
    pub fn all_of(object: &Object, namespaces: Namespaces<'_>) -> Vec<Self> {
        let kind = object.kind().as_str().to_ascii_lowercase();
        let mut all = match object {
            Object::NetworkPolicy(policy) => vec![network_policy(policy, namespaces)],
            Object::CiliumNetworkPolicy(policy) | Object::CiliumClusterwideNetworkPolicy(policy) => {
                cilium::normal(&kind, policy, namespaces)
            }
            Object::ClusterNetworkPolicy(policy) => vec![cluster::normal(policy, namespaces)],
            Object::Workload(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::HttpRoute(_)
            | Object::ServiceExport(_)
            | Object::Sidecar(_)
            | Object::Namespace(_) => Vec::new(),
        };
        if object.meta().is_audited() {
            let sides = all.iter_mut().flat_map(|policy| policy.ingress.iter_mut().chain(&mut policy.egress));
            sides.for_each(|side| side.audit = true);
        }
        all
    }

    /// Selectors that depend on the labels that Namespace objects give.
    pub fn namespace_selectors(&self) -> impl Iterator<Item = &LabelSelector> {
        let sides = self.ingress.iter().chain(&self.egress);
        let peers = sides.flat_map(|side| &side.rules).flat_map(|rule| &rule.peers);
        let of_peers = peers.filter_map(|peer| match peer {
            PeerMatch::Workloads { namespaces, .. } => Some(namespaces),
            PeerMatch::Services(ServiceMatch::Selected { namespaces, .. }) => Some(namespaces),
            PeerMatch::Any
            | PeerMatch::Outside(_)
            | PeerMatch::World(_)
            | PeerMatch::Entity(_)
            | PeerMatch::Gateways
            | PeerMatch::Services(ServiceMatch::Named(_))
            | PeerMatch::Names(_)
            | PeerMatch::Networks(_) => None,
        });
        of_peers.chain([&self.subject.namespaces]).filter_map(NamespaceMatch::by_label)
    }
}

fn network_policy(policy: &NetworkPolicy, namespaces: Namespaces<'_>) -> NormalPolicy {
    let provenance = format!("networkpolicy/{}", policy.meta.name);
    let side = |selected: bool, direction: Direction, rules: &[NetworkPolicyRule]| {
        selected.then(|| NormalSide {
            layer: Layer::Normal,
            audit: false,
            default_deny: Some(format!("{provenance}#default-deny-{}", direction.as_str())),
            rules: rules
                .iter()
                .enumerate()
                .map(|(i, rule)| NormalRule {
                    action: RuleAction::Allow,
                    peers: peers(rule, &policy.meta.name.namespace, namespaces),
                    ports: ports(rule),
                    l7: None,
                    provenance: format!("{provenance}#{}[{i}]", direction.as_str()).into(),
                })
                .collect(),
        })
    };
    NormalPolicy {
        ingress: side(policy.ingress_selected, Direction::Ingress, &policy.ingress),
        egress: side(policy.egress_selected, Direction::Egress, &policy.egress),
        subject: Subject {
            namespaces: NamespaceMatch::Named(policy.meta.name.namespace.clone()),
            pods: policy.pod_selector.clone(),
            nodes: None,
        },
        provenance,
    }
}

impl Direction {
    /// As provenance and flow events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

fn peers(rule: &NetworkPolicyRule, own_namespace: &str, all: Namespaces<'_>) -> Vec<PeerMatch> {
    if rule.peers.is_empty() {
        return vec![PeerMatch::Any];
    }
    let normal = |peer: &NetworkPolicyPeer| match peer {
        NetworkPolicyPeer::Pods { pod, namespace } => PeerMatch::Workloads {
            namespaces: match namespace {
                Some(selector) => all.select(selector),
                None => NamespaceMatch::Named(own_namespace.to_owned()),
            },
            pods: pod.clone().unwrap_or_default(),
        },
        NetworkPolicyPeer::IpBlock { cidr, except } => PeerMatch::Outside(cover(*cidr, except)),
    };
    rule.peers.iter().map(normal).collect()
}

fn ports(rule: &NetworkPolicyRule) -> Vec<PortMatch> {
    if rule.ports.is_empty() {
        return vec![PortMatch::Any];
    }
    let normal = |port: &NetworkPolicyPort| match &port.port {
        None => PortMatch::Range { protocol: port.protocol, ports: None },
        Some(PortRef::Number(first)) => PortMatch::Range {
            protocol: port.protocol,
            ports: Some((*first, port.end_port.unwrap_or(*first))),
        },
        Some(PortRef::Name(name)) => PortMatch::Named { protocol: port.protocol, name: name.clone() },
    };
    rule.ports.iter().map(normal).collect()
}
