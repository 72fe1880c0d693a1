//! By which DNS names servers of flows are verified. PURE.
//!
//! In Cilium's form (`<node>.<cluster>.hubble-grpc.cilium.io`), under the mesh's own domain. They stand in the certificates of
//! nodes and replicas, for clients that verify a server by DNS name, as all of Hubble's do; peers of the mesh go by SPIFFE IDs.

/// Longest name in DNS (RFC 1035, 2.3.4), written with dots.
const LONGEST: usize = 253;

/// The name of a node's agent: `<node>.<cluster>.hubble-grpc.<mesh domain>`. None: it would be longer than a name may be.
pub fn of_node(node: &str, cluster: &str, mesh_domain: &str) -> Option<String> {
    fits(format!("{node}.{cluster}.hubble-grpc.{mesh_domain}"))
}

/// The name of every replica, which has the flows of the whole cluster: `<cluster>.hubble-relay.<mesh domain>`. None: as of
/// [`of_node`].
pub fn of_cluster(cluster: &str, mesh_domain: &str) -> Option<String> {
    fits(format!("{cluster}.hubble-relay.{mesh_domain}"))
}

fn fits(name: String) -> Option<String> {
    (name.len() <= LONGEST).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_has_the_name_of_a_cluster_nor_a_name_that_is_too_long() {
        assert_eq!(of_node("n1", "west", "mesh.local").unwrap(), "n1.west.hubble-grpc.mesh.local");
        assert_eq!(of_cluster("west", "mesh.local").unwrap(), "west.hubble-relay.mesh.local");
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(60)].join(".");
        assert!(of_node("n1", "west", &long).is_some());
        assert_eq!(of_node(&"n".repeat(63), "west", &long), None);
    }
}
