//! What ClusterNetworkPolicy says of a flow, read from the objects as the user wrote them.

use ipnet::IpNet;

use super::{End, Side, Tiered, World};
use crate::{
    compile::Direction,
    policy::Flow,
    resource::{ClusterAction, ClusterPeer, ClusterPods, ClusterPolicy, ClusterPort, ClusterTier, Workload},
};

/// Adds what a policy says of traffic in this direction between `own` and `other`.
pub(super) fn judge(
    world: World<'_>,
    policy: &ClusterPolicy,
    direction: Direction,
    (own, other): (&Workload, &End<'_>),
    flow: &Flow,
    said: &mut Side,
) {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    if rules.is_empty() || !selects(world, &policy.subject, own) {
        return;
    }
    said.tiered = true;
    let tier = match policy.tier {
        ClusterTier::Admin => &mut said.admin,
        ClusterTier::Baseline => &mut said.baseline,
    };
    for (i, rule) in rules.iter().enumerate() {
        let by_port = |port: &ClusterPort| match port {
            ClusterPort::Range { protocol, ports } => {
                flow.protocol == (*protocol).into()
                    && ports.is_none_or(|(first, last)| first <= flow.port && flow.port <= last)
            }
            ClusterPort::Named(name) => world.is_named(name, direction, (Some(own), other), flow),
        };
        let by_peer = |peer: &ClusterPeer| match (peer, other) {
            (ClusterPeer::Pods(pods), End::Workload(other) | End::OwnNode(Some(other))) => {
                selects(world, pods, other)
            }
            // A block that holds all pods holds every workload.
            (ClusterPeer::Networks(nets), End::Workload(_) | End::OwnNode(Some(_))) => {
                let mut pods = world.cluster.pod_cidrs();
                let held = |pods: IpNet| nets.iter().any(|net| net.contains(&pods));
                // By one family is enough to be denied, and not to be let through.
                if rule.action == ClusterAction::Deny { pods.any(held) } else { pods.all(held) }
            }
            (ClusterPeer::Networks(nets), End::Outside(ip, _) | End::Node { ip, .. }) => {
                nets.iter().any(|net| net.contains(ip))
            }
            _ => false,
        };
        if rule.peers.iter().any(by_peer) && (rule.ports.is_empty() || rule.ports.iter().any(by_port)) {
            let provenance = format!("clusternetworkpolicy/{}#{}[{i}]", policy.meta.name, direction.as_str());
            tier.push(Tiered { priority: policy.priority, action: rule.action, provenance });
        }
    }
}

fn selects(world: World<'_>, pods: &ClusterPods, workload: &Workload) -> bool {
    pods.namespaces.matches(&world.namespace_labels(&workload.meta.name.namespace))
        && pods.pods.as_ref().is_none_or(|pods| pods.matches(&workload.meta.labels))
}
