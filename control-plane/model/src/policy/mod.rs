//! What policy means: the normal form that every policy language parses into, and the oracle.
//!
//! Decisions where Kubernetes leaves a choice, or where ours differs:
//! * An `ipBlock` matches only addresses outside the mesh, as in Cilium: a workload is matched by its labels,
//!   never by its address, so that the verdict does not change when it moves.
//! * Selectors see the workloads of this cluster only; callers from peers come through a gateway.
//! * A named port in an egress rule means every port that *some* workload of the destination's identity gives
//!   that name: the kernel knows identities, not pods.
//! * A workload may always talk to itself.

mod cidr;
mod normal;
mod oracle;

pub use cidr::cover;
pub use normal::{NamespaceMatch, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch};
pub use oracle::{Decision, Flow, FlowPeer, Verdict, World, verdict};
