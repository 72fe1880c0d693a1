//! Identity numbers that mean the same on every node.
//!
//! Mesh identities are 24-bit numbers from the control plane's dictionary (256 and up). The agent gives
//! addresses outside the mesh that a policy names by CIDR a number of its own, with [`LOCAL`] set, and puts
//! the CIDR into the maps: so the kernel only ever compares identities. CIDRs nest, and the kernel
//! answers with the narrowest one, therefore the agent has to install a rule that names a CIDR for every
//! known CIDR inside it as well. Another node's address is both an address like any other and that of a node: where a
//! CIDR is named around it, it has a local number too, that of the nodes within this CIDR.

/// In a policy rule: whoever the peer is. Never the identity of an address.
pub const ANY: u32 = 0;
/// This node itself.
pub const HOST: u32 = 1;
/// Whatever no map knows: an address outside the mesh that no policy names.
pub const WORLD: u32 = 2;
/// Another node of the cluster, within no CIDR that a policy names.
pub const REMOTE_NODE: u32 = 3;
/// Reserved for what probes pods' health.
pub const HEALTH: u32 = 4;
/// An address of the pods' ranges that no workload is known for (yet, or any more): a part of the mesh, so no
/// rule about addresses outside it holds for it.
pub const UNMANAGED: u32 = 5;
/// In a policy rule: every workload of the mesh, see [`is_workload`]. Never the identity of an address.
pub const WORKLOADS: u32 = 6;
/// The first number of the dictionary.
pub const FIRST: u32 = 256;
/// Set in numbers that this node allocated for CIDRs; they mean nothing elsewhere.
pub const LOCAL: u32 = 1 << 24;

/// Whether it is a number of the dictionary, and so that of a workload of the mesh.
#[inline(always)]
pub const fn is_workload(identity: u32) -> bool {
    identity >= FIRST && identity < LOCAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_this_nodes_making_and_reserved_ones_are_no_workloads() {
        for other in [ANY, HOST, WORLD, REMOTE_NODE, HEALTH, UNMANAGED, WORKLOADS, 255, LOCAL, LOCAL | 300] {
            assert!(!is_workload(other), "{other}");
        }
        assert!([256, 300, LOCAL - 1].into_iter().all(is_workload));
    }
}
