//! The slow, obvious evaluator. It reads NetworkPolicy objects, workloads and labels, one flow at a time, and
//! shares no code with the compiler, so that each can be tested against the other.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;

use crate::{
    compile::{Action, Direction, Input},
    identity::is_policy_label,
    records::WorkloadBinding,
    resource::{
        Labels, NAMESPACE_NAME_LABEL, NamespacedName, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicyRule, Object, ObjectKey, PortRef, Protocol, Workload,
    },
};

/// What the oracle reads.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct World<'a> {
    pub objects: &'a OrdMap<ObjectKey, Arc<Object>>,
    pub bindings: &'a OrdMap<NamespacedName, Arc<WorkloadBinding>>,
}

impl<'a> From<&'a Input> for World<'a> {
    fn from(input: &'a Input) -> Self {
        Self { objects: &input.objects, bindings: &input.bindings }
    }
}

/// A connection attempt. Replies belong to it and have no verdict of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Flow {
    pub source: FlowPeer,
    pub destination: FlowPeer,
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowPeer {
    /// A declared workload.
    Workload(NamespacedName),
    /// An address: a workload's, or one outside the mesh.
    Address(IpAddr),
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
    /// Every rule that permits, or else every default deny; empty where no policy applies.
    pub provenance: Vec<String>,
}

impl Decision {
    /// No policy applies.
    pub fn unrestricted() -> Self {
        Self { action: Action::Allow, provenance: Vec::new() }
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
    Outside(IpAddr),
    /// A name that nobody declared.
    Unknown(&'a NamespacedName),
}

/// What happens to this flow. A workload that is not declared may neither send nor receive.
pub fn verdict(world: World<'_>, flow: &Flow) -> Verdict {
    let source = world.end(&flow.source);
    let destination = world.end(&flow.destination);
    for end in [&source, &destination] {
        if let End::Unknown(name) = end {
            let deny =
                Decision { action: Action::Deny, provenance: vec![format!("workload/{name}#unknown")] };
            return Verdict::of(deny.clone(), deny);
        }
    }
    if let (End::Workload(a), End::Workload(b)) = (&source, &destination)
        && a.meta.name == b.meta.name
    {
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

    fn policies(self) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.objects.values().filter_map(|object| match object.as_ref() {
            Object::NetworkPolicy(policy) => Some(policy),
            _ => None,
        })
    }

    fn end(self, peer: &'a FlowPeer) -> End<'a> {
        match peer {
            FlowPeer::Workload(name) => {
                self.workloads().find(|w| w.meta.name == *name).map_or(End::Unknown(name), End::Workload)
            }
            FlowPeer::Address(ip) => {
                self.workloads().find(|w| self.has_address(w, *ip)).map_or(End::Outside(*ip), End::Workload)
            }
        }
    }

    fn has_address(self, workload: &Workload, ip: IpAddr) -> bool {
        match self.bindings.get(&workload.meta.name) {
            Some(binding) => binding.addresses.contains(&ip),
            None => workload.address == Some(ip),
        }
    }

    /// What the policies of `own` say of traffic in this direction between it and `other`.
    fn decide(self, direction: Direction, own: &End<'_>, other: &End<'_>, flow: &Flow) -> Decision {
        let End::Workload(own) = own else { return Decision::unrestricted() };
        let mut permits = Vec::new();
        let mut denials = Vec::new();
        for policy in self.policies() {
            let (selected, rules) = match direction {
                Direction::Ingress => (policy.ingress_selected, &policy.ingress),
                Direction::Egress => (policy.egress_selected, &policy.egress),
            };
            let name = &policy.meta.name;
            let applies =
                name.namespace == own.meta.name.namespace && policy.pod_selector.matches(&own.meta.labels);
            if !selected || !applies {
                continue;
            }
            denials.push(format!("networkpolicy/{name}#default-deny-{}", direction.as_str()));
            for (i, rule) in rules.iter().enumerate() {
                let destination = match direction {
                    Direction::Ingress => Some(*own),
                    Direction::Egress => match other {
                        End::Workload(other) => Some(*other),
                        End::Outside(_) | End::Unknown(_) => None,
                    },
                };
                if peer_matches(rule, &name.namespace, other)
                    && self.port_matches(rule, direction, destination, flow)
                {
                    permits.push(format!("networkpolicy/{name}#{}[{i}]", direction.as_str()));
                }
            }
        }
        match (permits.is_empty(), denials.is_empty()) {
            (true, true) => Decision::unrestricted(),
            (true, false) => Decision { action: Action::Deny, provenance: denials },
            (false, _) => Decision { action: Action::Allow, provenance: permits },
        }
    }

    fn port_matches(
        self,
        rule: &NetworkPolicyRule,
        direction: Direction,
        destination: Option<&Workload>,
        flow: &Flow,
    ) -> bool {
        let matches = |port: &NetworkPolicyPort| {
            port.protocol == flow.protocol
                && match &port.port {
                    None => true,
                    Some(PortRef::Number(first)) => {
                        (*first..=port.end_port.unwrap_or(*first)).contains(&flow.port)
                    }
                    Some(PortRef::Name(name)) => destination.is_some_and(|workload| match direction {
                        Direction::Ingress => serves(workload, name, flow),
                        Direction::Egress => {
                            self.workloads().any(|w| same_identity(w, workload) && serves(w, name, flow))
                        }
                    }),
                }
        };
        rule.ports.is_empty() || rule.ports.iter().any(matches)
    }
}

fn peer_matches(rule: &NetworkPolicyRule, policy_namespace: &str, other: &End<'_>) -> bool {
    let matches = |peer: &NetworkPolicyPeer| match (peer, other) {
        (NetworkPolicyPeer::Pods { pod, namespace }, End::Workload(other)) => {
            let own = &other.meta.name.namespace;
            let namespace_matches = match namespace {
                None => own == policy_namespace,
                Some(selector) => {
                    selector.matches(&Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), own.clone())]))
                }
            };
            namespace_matches && pod.as_ref().is_none_or(|selector| selector.matches(&other.meta.labels))
        }
        (NetworkPolicyPeer::IpBlock { cidr, except }, End::Outside(ip)) => {
            cidr.contains(ip) && !except.iter().any(|e| e.contains(ip))
        }
        _ => false,
    };
    rule.peers.is_empty() || rule.peers.iter().any(matches)
}

fn serves(workload: &Workload, port_name: &str, flow: &Flow) -> bool {
    workload
        .ports
        .iter()
        .any(|p| p.name.as_deref() == Some(port_name) && p.protocol == flow.protocol && p.port == flow.port)
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
