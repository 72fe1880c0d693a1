//! The slow, obvious evaluator. It reads policy objects, workloads and labels, one flow at a time, and shares no code
//! with the compiler, so that each can be tested against the other.

mod cilium;
mod cluster;

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;

use crate::{
    compile::{Action, Direction, FlowProtocol, Input, OWN_NODE},
    identity::is_policy_label,
    records::{ClusterInfo, NodeRecord, WorkloadBinding},
    resource::{
        ClusterAction, HttpRequest, HttpRule, Kind, Labels, NamespacedName, NetworkPolicy, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicyRule, Object, ObjectKey, PortRef, Workload,
    },
};

/// What the oracle reads.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct World<'a> {
    pub objects: &'a OrdMap<ObjectKey, Arc<Object>>,
    pub bindings: &'a OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    pub nodes: &'a OrdMap<String, Arc<NodeRecord>>,
    pub cluster: &'a ClusterInfo,
}

impl<'a> From<&'a Input> for World<'a> {
    fn from(input: &'a Input) -> Self {
        Self {
            objects: &input.objects,
            bindings: &input.bindings,
            nodes: &input.nodes,
            cluster: &input.cluster,
        }
    }
}

/// A connection attempt. Replies belong to it and have no verdict of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Flow {
    pub source: FlowPeer,
    pub destination: FlowPeer,
    pub protocol: FlowProtocol,
    /// Destination port; of ICMP `type << 8 | code`.
    pub port: u16,
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowPeer {
    /// A declared workload.
    Workload(NamespacedName),
    /// An address: a workload's, a node's, or one outside the mesh.
    Address(IpAddr),
    /// The same, for which DNS has answered the sender's question for a name.
    Named {
        #[allow(missing_docs)]
        address: IpAddr,
        /// In lower case, without the last dot.
        name: String,
    },
}

/// What happens to a flow: it must be permitted at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Verdict {
    pub action: Action,
    /// At the source.
    pub egress: Decision,
    /// At the destination.
    pub ingress: Decision,
}

/// What one end decides, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    #[allow(missing_docs)]
    pub action: Action,
    /// Every rule that denies, or else every one that permits, or else every default deny; empty where no policy applies.
    pub provenance: Vec<String>,
    /// By what it would be denied if audited policies were enforced, or an audited workload's were.
    pub audit: Vec<String>,
    /// It is allowed as far as somebody who reads it admits it.
    pub redirect: bool,
    /// Requests that are admitted then: those that one of these matches.
    pub requests: Vec<HttpRule>,
}

impl Decision {
    /// No policy applies.
    pub fn unrestricted() -> Self {
        Self {
            action: Action::Allow,
            provenance: Vec::new(),
            audit: Vec::new(),
            redirect: false,
            requests: Vec::new(),
        }
    }

    /// Whether a request on the flow gets through, as far as this end's policies read it.
    pub fn admits(&self, request: &HttpRequest<'_>) -> bool {
        self.action == Action::Allow
            && (!self.redirect || self.requests.iter().any(|rule| rule.matches(request)))
    }

    /// The same for a workload whose policies are only told of.
    pub(crate) fn audited(self) -> Self {
        match self.action {
            Action::Deny => Self { audit: self.provenance, ..Self::unrestricted() },
            Action::Allow => Self { redirect: false, requests: Vec::new(), ..self },
        }
    }
}

impl Verdict {
    /// Of both ends.
    pub fn of(egress: Decision, ingress: Decision) -> Self {
        let allowed = egress.action == Action::Allow && ingress.action == Action::Allow;
        Self { action: if allowed { Action::Allow } else { Action::Deny }, egress, ingress }
    }
}

/// An end of a flow, once it is known whether it is a workload.
enum End<'a> {
    Workload(&'a Workload),
    Outside(IpAddr, Option<&'a str>),
    /// Outside the mesh as well, but a node of this cluster.
    Node {
        ip: IpAddr,
        names: Vec<&'a str>,
    },
    /// The node that the workload runs on, seen from there; and the workload that has its address, or one that is not to be
    /// told from that.
    OwnNode(Option<&'a Workload>),
    /// Among the pods' addresses, yet no workload has it.
    Unmanaged,
    /// A name that nobody declared.
    Unknown(&'a NamespacedName),
}

/// What the policies that select a workload say of one direction, so far.
#[derive(Default)]
struct Side {
    denials: Vec<String>,
    permits: Vec<String>,
    /// One of the permits is for whatever it is.
    permits_unread: bool,
    /// What the others let through of requests.
    requests: Vec<HttpRule>,
    default_denials: Vec<String>,
    /// A policy of a tier has rules for this direction.
    tiered: bool,
    admin: Vec<Tiered>,
    baseline: Vec<Tiered>,
}

/// A rule of a tier that matches.
struct Tiered {
    priority: u16,
    action: ClusterAction,
    provenance: String,
}

/// What the first of a tier's rules decides. None: nothing.
fn first(mut tier: Vec<Tiered>) -> Option<(Action, Vec<String>)> {
    tier.sort_by_key(|rule| rule.priority);
    let Tiered { action, provenance, .. } = tier.into_iter().next()?;
    match action {
        ClusterAction::Accept => Some((Action::Allow, vec![provenance])),
        ClusterAction::Deny => Some((Action::Deny, vec![provenance])),
        ClusterAction::Pass => None,
    }
}

/// What happens to this flow. A workload that is not declared may neither send nor receive.
pub fn verdict(world: World<'_>, flow: &Flow) -> Verdict {
    let source = world.end(&flow.source);
    let destination = world.end(&flow.destination);
    for end in [&source, &destination] {
        if let End::Unknown(name) = end {
            let deny = Decision {
                action: Action::Deny,
                provenance: vec![format!("workload/{name}#unknown")],
                ..Decision::unrestricted()
            };
            return Verdict::of(deny.clone(), deny);
        }
    }
    let oneself = match (&source, &destination) {
        (End::Workload(a), End::Workload(b)) => a.meta.name == b.meta.name,
        (End::Node { names: a, .. }, End::Node { names: b, .. }) => a.first() == b.first(),
        _ => false,
    };
    if oneself {
        return Verdict::of(Decision::unrestricted(), Decision::unrestricted());
    }
    Verdict::of(
        world.decide(Direction::Egress, &source, &destination, flow),
        world.decide(Direction::Ingress, &destination, &source, flow),
    )
}

impl<'a> World<'a> {
    fn workloads(self) -> impl Iterator<Item = &'a Workload> {
        self.objects.values().filter_map(|object| match object.as_ref() {
            Object::Workload(workload) => Some(workload),
            _ => None,
        })
    }

    /// The workload that an end of a flow is, if it is one.
    pub fn workload(self, peer: &'a FlowPeer) -> Option<&'a Workload> {
        match self.end(peer) {
            End::Workload(workload) => Some(workload),
            _ => None,
        }
    }

    fn end(self, peer: &'a FlowPeer) -> End<'a> {
        match peer {
            FlowPeer::Workload(name) => {
                self.workloads().find(|w| w.meta.name == *name).map_or(End::Unknown(name), End::Workload)
            }
            FlowPeer::Address(ip) | FlowPeer::Named { address: ip, .. } => {
                let asked = match peer {
                    FlowPeer::Named { name, .. } => Some(name.as_str()),
                    _ => None,
                };
                if let Some(workload) = self.workloads().find(|w| self.has_address(w, *ip)) {
                    return End::Workload(workload);
                }
                let nodes = self.nodes.values().filter(|node| node.is_at(*ip));
                let names: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
                match names.is_empty() {
                    _ if self.cluster.has_pods_at(*ip) => End::Unmanaged,
                    false => End::Node { ip: *ip, names },
                    true => End::Outside(*ip, asked),
                }
            }
        }
    }

    /// Whether a workload, or one of the same identity, has an address of the node that another one runs on.
    fn is_at_the_node_of(self, workload: &Workload, other: &Workload) -> bool {
        let node = self.bindings.get(&other.meta.name).and_then(|binding| self.nodes.get(&binding.node));
        node.is_some_and(|node| {
            self.workloads()
                .filter(|w| same_identity(w, workload))
                .any(|w| node.addresses().any(|address| self.has_address(w, address)))
        })
    }

    fn audits_node(self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.is_audited())
    }

    /// What a namespace is labelled with.
    fn namespace_labels(self, namespace: &str) -> Labels {
        let key = ObjectKey { kind: Kind::Namespace, name: NamespacedName::new("", namespace) };
        let mut labels =
            self.objects.get(&key).map(|object| object.meta().labels.clone()).unwrap_or_default();
        labels.extend(super::undeclared(namespace));
        labels
    }

    fn has_address(self, workload: &Workload, ip: IpAddr) -> bool {
        match self.bindings.get(&workload.meta.name) {
            Some(binding) => binding.addresses.contains(&ip),
            None => workload.address == Some(ip),
        }
    }

    /// What the policies that select `own` say of traffic in this direction between it and `other`.
    fn decide(self, direction: Direction, own: &End<'_>, other: &End<'_>, flow: &Flow) -> Decision {
        let enforced = self.decide_with(false, direction, own, other, flow);
        let with_audited = self.decide_with(true, direction, own, other, flow);
        let decision = match (enforced.action, with_audited.action) {
            (Action::Allow, Action::Deny) => Decision { audit: with_audited.provenance, ..enforced },
            _ => enforced,
        };
        match own {
            End::Workload(own) if own.meta.is_audited() => decision.audited(),
            End::Node { names, .. } if names.first().is_some_and(|name| self.audits_node(name)) => {
                decision.audited()
            }
            _ => decision,
        }
    }

    /// `audited`: as if audited policies were like others.
    fn decide_with(
        self,
        audited: bool,
        direction: Direction,
        own: &End<'_>,
        other: &End<'_>,
        flow: &Flow,
    ) -> Decision {
        let own_node = match (own, other) {
            (End::Workload(own), End::Node { names, .. }) => {
                let node = self.bindings.get(&own.meta.name).map(|binding| binding.node.as_str());
                node.is_some_and(|node| names.contains(&node)).then_some(None)
            }
            (End::Workload(own), End::Workload(other)) => {
                self.is_at_the_node_of(other, own).then_some(Some(*other))
            }
            _ => None,
        };
        let at_own_node = own_node.map(End::OwnNode);
        let other = at_own_node.as_ref().unwrap_or(other);
        let mut said = Side::default();
        for object in self.objects.values().filter(|object| audited || !object.meta().is_audited()) {
            match (object.as_ref(), own) {
                (Object::NetworkPolicy(policy), End::Workload(own)) => {
                    self.judge(policy, direction, own, other, flow, &mut said);
                }
                (Object::CiliumNetworkPolicy(policy) | Object::CiliumClusterwideNetworkPolicy(policy), _) => {
                    let kind = object.kind().as_str().to_ascii_lowercase();
                    cilium::judge(self, &kind, policy, direction, (own, other), flow, &mut said);
                }
                (Object::ClusterNetworkPolicy(policy), End::Workload(own)) => {
                    cluster::judge(self, policy, direction, (own, other), flow, &mut said);
                }
                _ => {}
            }
        }
        let mut redirect = false;
        let (action, provenance) = if let Some(who) = own_node {
            let denied = match (said.tiered, who) {
                (false, _) => (!said.denials.is_empty()).then_some(said.denials),
                // Tiers don't know it as the node, but they may know who has its address.
                (true, None) => None,
                (true, Some(_)) => match first(said.admin) {
                    Some((Action::Deny, by)) => Some(by),
                    Some((Action::Allow, _)) => None,
                    None if !said.denials.is_empty() => Some(said.denials),
                    None if !said.permits.is_empty() || !said.default_denials.is_empty() => None,
                    None => match first(said.baseline) {
                        Some((Action::Deny, by)) => Some(by),
                        _ => None,
                    },
                },
            };
            match denied {
                Some(by) => (Action::Deny, by),
                None => (Action::Allow, vec![OWN_NODE.to_owned()]),
            }
        } else if let Some(decided) = first(said.admin) {
            decided
        } else if !said.denials.is_empty() {
            (Action::Deny, said.denials)
        } else if !said.permits.is_empty() {
            redirect = !said.permits_unread;
            (Action::Allow, said.permits)
        } else if !said.default_denials.is_empty() {
            (Action::Deny, said.default_denials)
        } else if let Some(decided) = first(said.baseline) {
            decided
        } else {
            return Decision::unrestricted();
        };
        let requests = if redirect { said.requests } else { Vec::new() };
        Decision { action, provenance, redirect, requests, ..Decision::unrestricted() }
    }

    /// Adds what a NetworkPolicy says.
    fn judge(
        self,
        policy: &NetworkPolicy,
        direction: Direction,
        own: &Workload,
        other: &End<'_>,
        flow: &Flow,
        said: &mut Side,
    ) {
        let (selected, rules) = match direction {
            Direction::Ingress => (policy.ingress_selected, &policy.ingress),
            Direction::Egress => (policy.egress_selected, &policy.egress),
        };
        let name = &policy.meta.name;
        let applies =
            name.namespace == own.meta.name.namespace && policy.pod_selector.matches(&own.meta.labels);
        if !selected || !applies {
            return;
        }
        said.default_denials.push(format!("networkpolicy/{name}#default-deny-{}", direction.as_str()));
        for (i, rule) in rules.iter().enumerate() {
            let by_port = |port: &NetworkPolicyPort| {
                flow.protocol == port.protocol.into()
                    && self.is_at(port.port.as_ref(), port.end_port, direction, (Some(own), other), flow)
            };
            if self.peer_matches(rule, &name.namespace, other)
                && (rule.ports.is_empty() || rule.ports.iter().any(by_port))
            {
                said.permits.push(format!("networkpolicy/{name}#{}[{i}]", direction.as_str()));
                said.permits_unread = true;
            }
        }
    }

    /// Whether a flow goes to a port, or into a range that begins there. `None`: any.
    fn is_at(
        self,
        port: Option<&PortRef>,
        end_port: Option<u16>,
        direction: Direction,
        ends: (Option<&Workload>, &End<'_>),
        flow: &Flow,
    ) -> bool {
        match port {
            None => true,
            Some(PortRef::Number(first)) => (*first..=end_port.unwrap_or(*first)).contains(&flow.port),
            Some(PortRef::Name(name)) => self.is_named(name, direction, ends, flow),
        }
    }

    /// Whether a flow goes to the port that whoever is called gives this name.
    fn is_named(
        self,
        name: &str,
        direction: Direction,
        (own, other): (Option<&Workload>, &End<'_>),
        flow: &Flow,
    ) -> bool {
        match (direction, other) {
            (Direction::Ingress, _) => own.is_some_and(|own| serves(own, name, flow)),
            (Direction::Egress, End::Workload(other) | End::OwnNode(Some(other))) => {
                self.one_alike_serves(other, name, flow)
            }
            (Direction::Egress, _) => false,
        }
    }

    fn peer_matches(self, rule: &NetworkPolicyRule, policy_namespace: &str, other: &End<'_>) -> bool {
        let matches = |peer: &NetworkPolicyPeer| match (peer, other) {
            (
                NetworkPolicyPeer::Pods { pod, namespace },
                End::Workload(other) | End::OwnNode(Some(other)),
            ) => {
                let own = &other.meta.name.namespace;
                let namespace_matches = match namespace {
                    None => own == policy_namespace,
                    Some(selector) => selector.matches(&self.namespace_labels(own)),
                };
                namespace_matches && pod.as_ref().is_none_or(|selector| selector.matches(&other.meta.labels))
            }
            (NetworkPolicyPeer::IpBlock { cidr, except }, End::Outside(ip, _) | End::Node { ip, .. }) => {
                cidr.contains(ip) && !except.iter().any(|e| e.contains(ip))
            }
            _ => false,
        };
        rule.peers.is_empty() || rule.peers.iter().any(matches)
    }

    /// Whether a workload of the same identity does.
    fn one_alike_serves(self, workload: &Workload, port_name: &str, flow: &Flow) -> bool {
        self.workloads().any(|w| same_identity(w, workload) && serves(w, port_name, flow))
    }
}

fn serves(workload: &Workload, port_name: &str, flow: &Flow) -> bool {
    workload.ports.iter().any(|p| {
        p.name.as_deref() == Some(port_name) && flow.protocol == p.protocol.into() && p.port == flow.port
    })
}

fn same_identity(a: &Workload, b: &Workload) -> bool {
    let relevant = |w: &Workload| -> Labels {
        w.meta
            .labels
            .iter()
            .filter(|(k, _)| is_policy_label(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    a.meta.name.namespace == b.meta.name.namespace
        && a.service_account == b.service_account
        && relevant(a) == relevant(b)
}
