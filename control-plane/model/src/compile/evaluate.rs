//! What compiled classes say of a flow: the reference for whoever turns them into maps.

use std::{net::IpAddr, sync::Arc};

use super::{
    Action, Direction, FlowProtocol, MeshModel, MeshWorkload, PolicyClass, RulePeer, flatten::UNDECIDED,
};
use crate::{
    identity::IdentityNumber,
    policy::{Decision, Flow, FlowPeer, Verdict},
};

/// The other end of a flow, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassPeer {
    /// A workload of the mesh. 0: its number is not known yet, so that only rules for anybody match.
    Identity(IdentityNumber),
    /// An address that belongs to no workload.
    Outside(IpAddr),
    /// The address of the node that the workload runs on.
    OwnNode,
}

/// Names the rule that no object has: a workload's own node is always admitted, unless anybody is denied.
pub const OWN_NODE: &str = "builtin/own-node";

/// What a class decides. A deny rule wins over allow rules; the provenance is the first rule's that decided.
pub fn decide(
    class: &PolicyClass,
    direction: Direction,
    peer: ClassPeer,
    protocol: FlowProtocol,
    port: u16,
) -> Decision {
    let matching = |action: Action, whoever: bool| {
        class.rules.iter().find(|rule| {
            (rule.peer == RulePeer::Any) == whoever
                && rule.direction == direction
                && rule.action == action
                && rule.protocol.is_none_or(|p| p == protocol)
                && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
                && match (&rule.peer, peer) {
                    (RulePeer::Any, _) => true,
                    (RulePeer::Identity(wanted), ClassPeer::Identity(number)) => *wanted == number,
                    (RulePeer::Cidr(net), ClassPeer::Outside(ip)) => net.contains(&ip),
                    (RulePeer::Identity(_), ClassPeer::Outside(_) | ClassPeer::OwnNode)
                    | (RulePeer::Cidr(_), ClassPeer::Identity(_) | ClassPeer::OwnNode) => false,
                }
        })
    };
    for action in [Action::Deny, Action::Allow] {
        if action == Action::Allow && peer == ClassPeer::OwnNode {
            return Decision { action, provenance: vec![OWN_NODE.to_owned()] };
        }
        // As the kernel looks for them.
        if let Some(rule) = matching(action, false).or_else(|| matching(action, true)) {
            if &*rule.provenance == UNDECIDED {
                return Decision::unrestricted();
            }
            return Decision { action, provenance: vec![rule.provenance.to_string()] };
        }
    }
    let default_deny = match direction {
        Direction::Ingress => &class.ingress_default_deny,
        Direction::Egress => &class.egress_default_deny,
    };
    match default_deny {
        Some(provenance) => Decision { action: Action::Deny, provenance: vec![provenance.clone()] },
        None => Decision::unrestricted(),
    }
}

impl MeshModel {
    /// What the compiled mesh does to a flow: the answer that the kernel must give.
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        let (Ok(source), Ok(destination)) = (self.end(&flow.source), self.end(&flow.destination)) else {
            let deny = Decision { action: Action::Deny, provenance: Vec::new() };
            return Verdict::of(deny.clone(), deny);
        };
        if let (Some(a), Some(b)) = (source.0, destination.0)
            && a.name == b.name
        {
            return Verdict::of(Decision::unrestricted(), Decision::unrestricted());
        }
        let at = |own: (Option<&MeshWorkload>, ClassPeer), other: ClassPeer, direction| {
            let Some(workload) = own.0 else { return Decision::unrestricted() };
            let other = match other {
                ClassPeer::Outside(ip) if self.is_own_node(workload, ip) => ClassPeer::OwnNode,
                other => other,
            };
            match self.policy_classes.get(&workload.policy_class) {
                Some(class) => decide(class, direction, other, flow.protocol, flow.port),
                None => Decision { action: Action::Deny, provenance: Vec::new() },
            }
        };
        Verdict::of(
            at(source, destination.1, Direction::Egress),
            at(destination, source.1, Direction::Ingress),
        )
    }

    fn is_own_node(&self, workload: &MeshWorkload, ip: IpAddr) -> bool {
        let node = workload.binding.as_ref().and_then(|binding| self.nodes.get(&binding.node));
        node.is_some_and(|node| node.is_at(ip))
    }

    /// The workload that has this address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&MeshWorkload> {
        self.workloads.get(self.index.at(ip).next()?).map(Arc::as_ref)
    }

    fn end(&self, peer: &FlowPeer) -> Result<(Option<&MeshWorkload>, ClassPeer), ()> {
        match peer {
            FlowPeer::Workload(name) => {
                let workload = self.workloads.get(name).ok_or(())?;
                Ok((Some(workload), ClassPeer::Identity(workload.identity)))
            }
            FlowPeer::Address(ip) => Ok(match self.workload_at(*ip) {
                Some(workload) => (Some(workload), ClassPeer::Identity(workload.identity)),
                // Among the pods', yet nobody's.
                None if self.cluster.has_pods_at(*ip) => (None, ClassPeer::Identity(0)),
                None => (None, ClassPeer::Outside(*ip)),
            }),
        }
    }
}
