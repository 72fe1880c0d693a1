//! What a node's proxy lets through of what pods of its node send, where a policy allows only requests that it has read.
//!
//! The kernel has judged by then: what comes to the proxy may pass as far as its rules go, and none that knows nothing of requests
//! allows it. It knows pods by their addresses, which they cannot forge, and so does the proxy. It is told of nobody
//! whom a rule does not name, and lets nothing through that no rule does.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::agent::local_workloads;
use crate::{
    compile::{Action, Direction, FlowProtocol, MeshModel, MeshWorkload, PolicyClass, RulePeer},
    identity::IdentityNumber,
    policy::{Entity, L7},
    resource::HttpRule,
};

/// The rules of one policy class, and whose they are on the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Reader<'a> {
    /// Number of the class.
    pub class: u32,
    /// Addresses of the node's pods of this class. Never empty.
    pub sources: Vec<IpAddr>,
    /// What is let through. Never empty.
    pub rules: Vec<ReadRule<'a>>,
    /// What is allowed whatever it is, and never comes here by policy.
    unread: Vec<(Option<(u16, u16)>, Destinations)>,
}

/// What one rule lets through.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadRule<'a> {
    /// The object and the rule in it.
    pub provenance: &'a str,
    /// Inclusive; None: any.
    pub ports: Option<(u16, u16)>,
    /// See there.
    pub to: Destinations,
    /// One of them is enough.
    pub requests: &'a [HttpRule],
}

/// Addresses that a rule means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations {
    /// None: any.
    pub blocks: Option<Vec<IpNet>>,
    /// Not these.
    pub except: Vec<IpNet>,
}

impl Destinations {
    fn only(blocks: Vec<IpNet>) -> Self {
        Self { blocks: Some(blocks), except: Vec::new() }
    }

    /// Whether it means an address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let inside = |blocks: &[IpNet]| blocks.iter().any(|net| net.contains(&ip));
        self.blocks.as_deref().is_none_or(inside) && !inside(&self.except)
    }

    fn is_nobody(&self) -> bool {
        self.blocks.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Reader<'_> {
    /// The rules by which a connection to one of these would come here.
    pub fn concerning(&self, ends: &[(IpAddr, u16)]) -> Vec<&ReadRule<'_>> {
        let at = |ports: &Option<(u16, u16)>, to: &Destinations, (ip, port): (IpAddr, u16)| {
            ports.is_none_or(|(first, last)| (first..=last).contains(&port)) && to.contains(ip)
        };
        let read = |end: &&(IpAddr, u16)| !self.unread.iter().any(|(ports, to)| at(ports, to, **end));
        let ends: Vec<(IpAddr, u16)> = ends.iter().filter(read).copied().collect();
        self.rules.iter().filter(|rule| ends.iter().any(|end| at(&rule.ports, &rule.to, *end))).collect()
    }
}

/// What the proxy of a node reads for whom.
pub fn readers<'a>(model: &'a MeshModel, node: &str) -> Vec<Reader<'a>> {
    let mut pods: BTreeMap<u32, Vec<&MeshWorkload>> = BTreeMap::new();
    for workload in local_workloads(model, node).into_iter().filter(|workload| !workload.audit) {
        pods.entry(workload.policy_class).or_default().push(workload);
    }
    pods.retain(|class, _| model.policy_classes.get(class).is_some_and(|class| reads(class)));
    if pods.is_empty() {
        return Vec::new();
    }
    let places = Places::of(model, node);
    let reader = |(class, pods): (u32, Vec<&MeshWorkload>)| {
        let sources: Vec<IpAddr> = pods.into_iter().flat_map(addresses).collect();
        let class = model.policy_classes.get(&class)?;
        let mut reader = Reader { class: class.id, sources, rules: Vec::new(), unread: Vec::new() };
        for rule in class.rules.iter().filter(|rule| {
            (rule.direction, rule.action, rule.audit) == (Direction::Egress, Action::Allow, false)
                && rule.protocol.is_none_or(|protocol| protocol == FlowProtocol::Tcp)
        }) {
            let to = places.of_peer(&rule.peer);
            match &rule.l7 {
                Some(L7::Http(requests)) if !to.is_nobody() => {
                    let provenance = &*rule.provenance;
                    reader.rules.push(ReadRule { provenance, ports: rule.ports, to, requests });
                }
                None => reader.unread.push((rule.ports, to)),
                // Others read it, or it means nobody.
                Some(_) => {}
            }
        }
        (!reader.sources.is_empty() && !reader.rules.is_empty()).then_some(reader)
    };
    pods.into_iter().filter_map(reader).collect()
}

fn reads(class: &PolicyClass) -> bool {
    class.rules.iter().any(|rule| !rule.audit && matches!(rule.l7, Some(L7::Http(_))))
}

fn addresses(workload: &MeshWorkload) -> impl Iterator<Item = IpAddr> {
    workload.binding.iter().flat_map(|binding| &binding.addresses).copied()
}

/// Where everybody is.
struct Places {
    workloads: BTreeMap<IdentityNumber, Vec<IpNet>>,
    /// Addresses that are none outside of the mesh, but for nodes'.
    mesh: Vec<IpNet>,
    own_node: Vec<IpNet>,
    other_nodes: Vec<IpNet>,
}

impl Places {
    fn of(model: &MeshModel, node: &str) -> Self {
        let mut workloads: BTreeMap<IdentityNumber, Vec<IpNet>> = BTreeMap::new();
        let mut mesh: Vec<IpNet> = model.cluster.pod_cidrs().collect();
        for workload in model.workloads.values() {
            for ip in addresses(workload) {
                workloads.entry(workload.identity).or_default().push(ip.into());
                if !model.cluster.has_pods_at(ip) {
                    mesh.push(ip.into());
                }
            }
        }
        let of = |own: bool| {
            let nodes = model.nodes.values().filter(move |other| (other.name == node) == own);
            nodes.flat_map(|node| node.addresses()).map(IpNet::from).collect::<Vec<IpNet>>()
        };
        Self { workloads, mesh, own_node: of(true), other_nodes: of(false) }
    }

    fn of_peer(&self, peer: &RulePeer) -> Destinations {
        match peer {
            RulePeer::Any => Destinations::default(),
            RulePeer::Identity(number) => {
                Destinations::only(self.workloads.get(number).cloned().unwrap_or_default())
            }
            // Addresses outside of the mesh, and other nodes.
            RulePeer::Cidr(net) => {
                let except = self.mesh.iter().chain(&self.own_node).copied().collect();
                Destinations { blocks: Some(vec![*net]), except }
            }
            RulePeer::Entity(Entity::World) => {
                let except = [&self.mesh, &self.own_node, &self.other_nodes].into_iter().flatten().copied();
                Destinations { blocks: None, except: except.collect() }
            }
            RulePeer::Entity(Entity::Workloads) => {
                Destinations::only(self.workloads.values().flatten().copied().collect())
            }
            RulePeer::Entity(Entity::RemoteNode) => Destinations::only(self.other_nodes.clone()),
            RulePeer::Entity(Entity::Host | Entity::Health) => Destinations::only(self.own_node.clone()),
            // Not to be told from others by its address.
            RulePeer::Entity(Entity::Unmanaged) | RulePeer::Name(_) => Destinations::only(Vec::new()),
        }
    }
}
