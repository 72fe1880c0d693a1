//! What compiled classes say of a flow: the reference for whoever turns them into maps.

use std::{net::IpAddr, sync::Arc};

use super::{
    Action, Direction, FlowProtocol, MeshModel, MeshWorkload, PolicyClass, PolicyRule, RulePeer,
    flatten::UNDECIDED,
};
use crate::{
    identity::IdentityNumber,
    policy::{Decision, Entity, Flow, FlowPeer, Verdict},
};

/// The other end of a flow, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassPeer<'a> {
    /// A workload of the mesh. 0: its number is not known yet, so that only rules for anybody match.
    Identity(IdentityNumber),
    /// An address outside the mesh, that is no node's, with the name that DNS has answered it for.
    Outside(IpAddr, Option<&'a str>),
    /// The address of another node than the one that the workload runs on.
    Node(IpAddr),
    /// The address of the node that the workload runs on.
    OwnNode,
    /// The same, where a workload has that address; or one with the identity of such a one.
    OwnNodeAs(IdentityNumber),
    /// An address among the pods' that no workload has.
    Unmanaged,
}

/// Names the rule that no object has: a workload's own node is always admitted, unless a denial means it.
pub const OWN_NODE: &str = "builtin/own-node";

/// What a class decides. A deny rule wins over allow rules; the provenance is the first rule's that decided.
pub fn decide(
    class: &PolicyClass,
    direction: Direction,
    peer: ClassPeer<'_>,
    protocol: FlowProtocol,
    port: u16,
) -> Decision {
    let (default_deny, audit_default) = match direction {
        Direction::Ingress => (&class.ingress_default_deny, &class.ingress_audit_default),
        Direction::Egress => (&class.egress_default_deny, &class.egress_audit_default),
    };
    let matching = |audit: bool, action: Action, whoever: bool| {
        class.rules.iter().filter(move |rule| {
            (rule.peer == RulePeer::Any) == whoever
                && rule.audit == audit
                && rule.direction == direction
                && rule.action == action
                && rule.protocol.is_none_or(|p| p == protocol)
                && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
                && is_about(&rule.peer, peer)
        })
    };
    // As the kernel looks for them.
    let first = |audit, action| {
        matching(audit, action, false).next().or_else(|| matching(audit, action, true).next())
    };
    if let Some(rule) = first(false, Action::Deny) {
        return said(Action::Deny, rule);
    }
    // Nothing denies it but for want of a rule.
    let allowed = first(false, Action::Allow);
    let mut decision = match (peer, allowed, default_deny) {
        (ClassPeer::OwnNode | ClassPeer::OwnNodeAs(_), ..) => {
            Decision { provenance: vec![OWN_NODE.to_owned()], ..Decision::unrestricted() }
        }
        (_, Some(rule), _) => {
            let all = || matching(false, Action::Allow, false).chain(matching(false, Action::Allow, true));
            Decision { redirect: all().all(|rule| rule.l7.is_some()), ..said(Action::Allow, rule) }
        }
        (_, None, Some(provenance)) => {
            let provenance = vec![provenance.clone()];
            return Decision { action: Action::Deny, provenance, ..Decision::unrestricted() };
        }
        (_, None, None) => Decision::unrestricted(),
    };
    let own_node = matches!(peer, ClassPeer::OwnNode | ClassPeer::OwnNodeAs(_));
    let spoken_for = own_node || allowed.is_some() || first(true, Action::Allow).is_some();
    decision.audit = match first(true, Action::Deny) {
        Some(rule) => vec![rule.provenance.to_string()],
        None => audit_default.iter().filter(|_| !spoken_for).cloned().collect(),
    };
    decision
}

fn said(action: Action, rule: &PolicyRule) -> Decision {
    let provenance = match &*rule.provenance {
        UNDECIDED => Vec::new(),
        named => vec![named.to_owned()],
    };
    Decision { action, provenance, ..Decision::unrestricted() }
}

fn is_about(rule: &RulePeer, peer: ClassPeer<'_>) -> bool {
    match (rule, peer) {
        (RulePeer::Any, _) => true,
        (RulePeer::Identity(wanted), ClassPeer::Identity(number) | ClassPeer::OwnNodeAs(number)) => {
            *wanted == number
        }
        (RulePeer::Cidr(net), ClassPeer::Outside(ip, _) | ClassPeer::Node(ip)) => net.contains(&ip),
        (RulePeer::Entity(Entity::World), ClassPeer::Outside(..)) => true,
        (RulePeer::Entity(Entity::RemoteNode), ClassPeer::Node(_)) => true,
        (RulePeer::Entity(Entity::Host | Entity::Health), ClassPeer::OwnNode | ClassPeer::OwnNodeAs(_)) => {
            true
        }
        (RulePeer::Entity(Entity::Unmanaged), ClassPeer::Unmanaged) => true,
        (RulePeer::Entity(Entity::Workloads), ClassPeer::Identity(number) | ClassPeer::OwnNodeAs(number)) => {
            number != 0
        }
        (RulePeer::Name(pattern), ClassPeer::Outside(_, Some(name))) => pattern.matches(name),
        (RulePeer::Identity(_) | RulePeer::Cidr(_) | RulePeer::Entity(_) | RulePeer::Name(_), _) => false,
    }
}

/// Whose policies have a say at one end.
#[derive(Clone, Copy)]
enum Own<'a> {
    Workload(&'a MeshWorkload),
    Node(&'a str),
    Nobody,
}

impl MeshModel {
    /// What the compiled mesh does to a flow: the answer that the kernel must give.
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        let (Ok(source), Ok(destination)) = (self.end(&flow.source), self.end(&flow.destination)) else {
            let deny = Decision { action: Action::Deny, ..Decision::unrestricted() };
            return Verdict::of(deny.clone(), deny);
        };
        let oneself = match (source.0, destination.0) {
            (Own::Workload(a), Own::Workload(b)) => a.name == b.name,
            (Own::Node(a), Own::Node(b)) => a == b,
            _ => false,
        };
        if oneself {
            return Verdict::of(Decision::unrestricted(), Decision::unrestricted());
        }
        let at = |own: Own<'_>, other: ClassPeer<'_>, direction| {
            let (class, other, audit) = match own {
                Own::Nobody => return Decision::unrestricted(),
                Own::Node(node) => match self.host_classes.get(node) {
                    Some(class) => {
                        (*class, other, self.nodes.get(node).is_some_and(|record| record.is_audited()))
                    }
                    None => return Decision::unrestricted(),
                },
                Own::Workload(workload) => {
                    let other = match other {
                        ClassPeer::Node(ip) if self.is_own_node(workload, ip) => ClassPeer::OwnNode,
                        ClassPeer::Identity(number) if self.is_own_nodes(workload, number) => {
                            ClassPeer::OwnNodeAs(number)
                        }
                        other => other,
                    };
                    (workload.policy_class, other, workload.audit)
                }
            };
            let decision = match self.policy_classes.get(&class) {
                Some(class) => decide(class, direction, other, flow.protocol, flow.port),
                None => Decision { action: Action::Deny, ..Decision::unrestricted() },
            };
            if audit { decision.audited() } else { decision }
        };
        Verdict::of(
            at(source.0, destination.1, Direction::Egress),
            at(destination.0, source.1, Direction::Ingress),
        )
    }

    fn is_own_node(&self, workload: &MeshWorkload, ip: IpAddr) -> bool {
        let node = workload.binding.as_ref().and_then(|binding| self.nodes.get(&binding.node));
        node.is_some_and(|node| node.is_at(ip))
    }

    /// Whether a workload with this identity has an address of the node.
    fn is_own_nodes(&self, workload: &MeshWorkload, number: IdentityNumber) -> bool {
        let node = workload.binding.as_ref().and_then(|binding| self.nodes.get(&binding.node));
        let mut there = node.into_iter().flat_map(|node| node.addresses()).flat_map(|ip| self.index.at(ip));
        there.any(|name| self.workloads.get(name).is_some_and(|other| other.identity == number))
    }

    /// The workload that has this address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&MeshWorkload> {
        self.workloads.get(self.index.at(ip).next()?).map(Arc::as_ref)
    }

    fn end<'a>(&'a self, peer: &'a FlowPeer) -> Result<(Own<'a>, ClassPeer<'a>), ()> {
        let (ip, name) = match peer {
            FlowPeer::Workload(name) => {
                let workload = self.workloads.get(name).ok_or(())?;
                return Ok((Own::Workload(workload), ClassPeer::Identity(workload.identity)));
            }
            FlowPeer::Address(ip) => (*ip, None),
            FlowPeer::Named { address, name } => (*address, Some(name.as_str())),
        };
        if let Some(workload) = self.workload_at(ip) {
            return Ok((Own::Workload(workload), ClassPeer::Identity(workload.identity)));
        }
        if self.cluster.has_pods_at(ip) {
            return Ok((Own::Nobody, ClassPeer::Unmanaged));
        }
        Ok(match self.nodes.values().find(|node| node.is_at(ip)) {
            Some(node) => (Own::Node(&node.name), ClassPeer::Node(ip)),
            None => (Own::Nobody, ClassPeer::Outside(ip, name)),
        })
    }
}
