//! What policy means: the normal form that every policy language parses into, and the oracle.
//!
//! Decisions where Kubernetes leaves a choice, or where ours differs:
//! * An `ipBlock` matches only addresses outside the mesh, as in Cilium: a workload is matched by its labels,
//!   never by its address, so that the verdict does not change when it moves.
//! * A namespace has the labels of its Namespace object, if there is one, and its name in any case.
//! * Selectors see the workloads of this cluster only; callers from peers come through a gateway.
//! * A named port in an egress rule means every port that *some* workload of the destination's identity gives
//!   that name: the kernel knows identities, not pods.
//! * A workload may always talk to itself.
//! * Addresses among the pods' that no workload has are known to nobody: only rules for anybody match them.
//! * Of policies in tiers (ClusterNetworkPolicy) those of Admin are asked first, then all others together, then those of
//!   Baseline. A block of their `networks` that holds the range of all pods holds every workload; one that holds some
//!   pods, or none, means addresses outside the mesh alone. Where pods have two ranges, one is enough for a denial, and
//!   both are needed to let anybody through.
//! * A workload's own node may always talk to it, and it to the node, unless a rule denies that to anybody or to the node
//!   (`host`, `cluster`); where tiers have a say, in any case. A workload that has the node's address (a gateway) is
//!   to those beside it the node *and* what it is: a denial of either is one, of tiers of the workload alone; the kernel knows
//!   it by its identity, so that others with the same identity are taken for it. Other nodes
//!   are addresses outside the mesh, which rules may name by address or as the nodes that they are.
//! * Names (`toFQDNs`) mean addresses outside the mesh that are no node's, and of these the ones that the asking workload
//!   was answered.
//! * A service is who its selector finds, by the labels that identities have; without a selector, the addresses outside
//!   the mesh that its EndpointSlices list.
//! * An audited policy (`isthmus.io/audit`) decides nothing: what it would deny, together with all others, is told of.

mod cidr;
mod cilium;
mod cluster;
mod name;
mod namespaces;
mod normal;
mod oracle;

pub use cidr::cover;
pub use name::{MAX_NAME, NameError, NamePattern};
pub(crate) use namespaces::undeclared;
pub use namespaces::{NamespaceMatch, Namespaces};
pub(crate) use normal::icmp;
pub use normal::{
    Entity, L7, Layer, NODE_PROXY, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch, RuleAction,
    ServiceMatch, Subject,
};
pub use oracle::{Decision, Flow, FlowPeer, Verdict, World, verdict};
