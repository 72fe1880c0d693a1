//! The node itself, as an endpoint: policies with a `nodeSelector`.
//!
//! Its entry in `ENDPOINTS` has no interface: packets of it come and go by many. Which packets are the node's own is said by
//! `LOCALS`, which has its addresses. Of connections only the peer's address is a part of the key, so each of the node's
//! addresses has a number that stands where a pod's incarnation does.

/// The key of the node's own entry in `ENDPOINTS`, and of its connections: no interface's.
pub const INTERFACE: u32 = 0;
/// In [`crate::ConnEntry::class`]: a flow under an address of the node's that is nobody's on it, such as those of pods that
/// leave the mesh with the node's address. No endpoint is judged as this.
pub const FOREIGN: u32 = u32::MAX;
