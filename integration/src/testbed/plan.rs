//! Names and addresses of a testbed: pure, so that the whole of it can be read here.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Every namespace, cgroup and folder that a testbed makes begins with this.
pub const PREFIX: &str = "ism";
/// Port of every control-plane door.
pub const DOOR_PORT: u16 = 9443;
/// Port of every east-west gateway.
pub const GATEWAY_PORT: u16 = 15443;

/// What a cluster of the testbed is made of.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// Also the folder name and part of the namespaces' names.
    pub name: String,
    /// Second-last byte of the underlay addresses, 1 to 250.
    pub index: u8,
    /// Control-plane replicas, 1 to 9.
    pub replicas: u8,
    /// Nodes, 1 to 9. The first one also runs the east-west gateway.
    pub nodes: u8,
    /// How packets of pods travel between nodes (`--tunnel` of the agents); None: as by default.
    pub tunnel: Option<&'static str>,
    /// Pods, services and nodes have IPv6 addresses beside those of IPv4.
    pub dual_stack: bool,
    /// Services are served to what comes in by the nodes' own interfaces.
    pub serves_outside: bool,
    /// A node that denies nothing, but tells of it.
    pub audited: Option<u8>,
}

impl ClusterPlan {
    /// Three replicas and two nodes.
    pub fn new(name: &str, index: u8) -> Self {
        Self { replicas: 3, nodes: 2, ..Self::small(name, index) }
    }

    /// One replica and one node.
    pub fn small(name: &str, index: u8) -> Self {
        let name = name.to_owned();
        Self {
            name,
            index,
            replicas: 1,
            nodes: 1,
            tunnel: None,
            dual_stack: false,
            serves_outside: false,
            audited: None,
        }
    }

    /// `west.example` for `west`.
    pub fn trust_domain(&self) -> String {
        format!("{}.example", self.name)
    }

    /// The pods of every cluster have the same addresses, on purpose: clusters with overlapping CIDRs can join.
    pub fn pod_cidr(&self) -> &'static str {
        "10.1.0.0/16"
    }

    /// As for the pods.
    pub fn service_cidr(&self) -> &'static str {
        "10.101.0.0/16"
    }

    /// As large as that of IPv4.
    pub fn pod_cidr6(&self) -> Option<&'static str> {
        self.dual_stack.then_some("fd00:1::/112")
    }

    /// As large as that of IPv4.
    pub fn service_cidr6(&self) -> Option<&'static str> {
        self.dual_stack.then_some("fd00:101::/112")
    }

    /// Network namespace of a replica, from 1.
    pub fn replica_namespace(&self, replica: u8) -> String {
        format!("{PREFIX}-{}-cp{replica}", self.name)
    }

    /// Network namespace of a node, from 1.
    pub fn node_namespace(&self, node: u8) -> String {
        format!("{PREFIX}-{}-n{node}", self.name)
    }

    /// Network namespace of a pod.
    pub fn pod_namespace(&self, pod: &str) -> String {
        format!("{PREFIX}-{}-pod-{pod}", self.name)
    }

    /// The node's name in the control plane.
    pub fn node_name(&self, node: u8) -> String {
        format!("{}-n{node}", self.name)
    }

    /// Underlay address of a replica, from 1.
    pub fn replica_address(&self, replica: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, self.index, replica)
    }

    /// Underlay address of a node, from 1.
    pub fn node_address(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, self.index, 10 + node)
    }

    /// The same of IPv6.
    pub fn node_address6(&self, node: u8) -> Option<Ipv6Addr> {
        let host = u16::from(10 + node);
        self.dual_stack.then(|| Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, self.index.into(), host))
    }

    /// `host:port` of a replica's door.
    pub fn door(&self, replica: u8) -> String {
        format!("{}:{DOOR_PORT}", self.replica_address(replica))
    }

    /// `host:port` of the cluster's gateway, on its first node.
    pub fn gateway(&self) -> String {
        format!("{}:{GATEWAY_PORT}", self.node_address(1))
    }
}

/// The namespace that holds the underlay's bridge, so that the machine's own namespace holds nothing.
pub fn underlay_namespace() -> String {
    format!("{PREFIX}-underlay")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_hosts_share_an_address_or_a_namespace() {
        let mut addresses = BTreeSet::new();
        let mut namespaces = BTreeSet::new();
        for plan in [ClusterPlan::new("west", 1), ClusterPlan::new("east", 2)] {
            for replica in 1..=plan.replicas {
                assert!(addresses.insert(plan.replica_address(replica)));
                assert!(namespaces.insert(plan.replica_namespace(replica)));
            }
            for node in 1..=plan.nodes {
                assert!(addresses.insert(plan.node_address(node)));
                assert!(namespaces.insert(plan.node_namespace(node)));
            }
        }
        assert_eq!(addresses.len(), 10);
    }
}
