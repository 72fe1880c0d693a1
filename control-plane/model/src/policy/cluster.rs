//! ClusterNetworkPolicy in the normal form.

use std::sync::Arc;

use super::{
    Layer, NamespaceMatch, Namespaces, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch,
    RuleAction, Subject,
};
use crate::{
    compile::Direction,
    resource::{
        ClusterAction, ClusterPeer, ClusterPods, ClusterPolicy, ClusterPort, ClusterRule, ClusterTier,
        Protocol,
    },
};

pub(super) fn normal(policy: &ClusterPolicy, all: Namespaces<'_>) -> NormalPolicy {
    let provenance = format!("clusternetworkpolicy/{}", policy.meta.name);
    let layer = match policy.tier {
        ClusterTier::Admin => Layer::Admin(policy.priority),
        ClusterTier::Baseline => Layer::Baseline(policy.priority),
    };
    let side = |direction: Direction, rules: &[ClusterRule]| {
        let rule = |(i, rule): (usize, &ClusterRule)| NormalRule {
            action: match rule.action {
                ClusterAction::Accept => RuleAction::Allow,
                ClusterAction::Deny => RuleAction::Deny,
                ClusterAction::Pass => RuleAction::Pass,
            },
            peers: rule.peers.iter().map(|one| peer(one, all)).collect(),
            ports: ports(&rule.ports),
            l7: None,
            provenance: Arc::from(format!("{provenance}#{}[{i}]", direction.as_str())),
        };
        let rules: Vec<NormalRule> = rules.iter().enumerate().map(rule).collect();
        (!rules.is_empty()).then_some(NormalSide { layer, audit: false, default_deny: None, rules })
    };
    let (namespaces, pods) = workloads(&policy.subject, all);
    NormalPolicy {
        ingress: side(Direction::Ingress, &policy.ingress),
        egress: side(Direction::Egress, &policy.egress),
        subject: Subject { namespaces, pods, nodes: None },
        provenance,
    }
}

fn workloads(pods: &ClusterPods, all: Namespaces<'_>) -> (NamespaceMatch, crate::resource::LabelSelector) {
    (all.select(&pods.namespaces), pods.pods.clone().unwrap_or_default())
}

fn peer(peer: &ClusterPeer, all: Namespaces<'_>) -> PeerMatch {
    match peer {
        ClusterPeer::Pods(selected) => {
            let (namespaces, pods) = workloads(selected, all);
            PeerMatch::Workloads { namespaces, pods }
        }
        ClusterPeer::Networks(networks) => PeerMatch::Networks(networks.clone()),
    }
}

fn ports(ports: &[ClusterPort]) -> Vec<PortMatch> {
    if ports.is_empty() {
        return vec![PortMatch::Any];
    }
    let each = |port: &ClusterPort| -> Vec<PortMatch> {
        match port {
            ClusterPort::Range { protocol, ports } => {
                vec![PortMatch::Range { protocol: *protocol, ports: *ports }]
            }
            ClusterPort::Named(name) => [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                .map(|protocol| PortMatch::Named { protocol, name: name.clone() })
                .to_vec(),
        }
    };
    ports.iter().flat_map(each).collect()
}
