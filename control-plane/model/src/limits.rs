//! Limits that more than one crate keeps to: what is parsed at a door must be storable, and the other way round.
//!
//! The rest of what a cluster holds at most is in `mesh_store::limits`; `docs/operations.md` lists both.

pub use crate::resource::{MAX_OBJECT_BYTES, MAX_OBJECT_DEPTH};

/// Rules of one policy class: each peer that a policy names with each range of ports there. A peer that is everybody, every
/// workload or an entity counts once. Agents refuse more.
pub const MAX_CLASS_RULES: usize = 1 << 19;
/// Different peers of one policy class: half of what a node's kernel has room for, so that a class fits beside its successor.
pub const MAX_CLASS_PEERS: usize = 1 << 18;
/// Bytes of one policy class as agents are told of it: less than they take of one message.
pub const MAX_CLASS_BYTES: usize = 12 << 20;
/// Peers of all classes of the workloads of one node: `PEERS` of its kernel.
pub const MAX_NODE_PEERS: usize = 1 << 19;
/// Roots of one trust domain: enough for a rotation with several CAs.
pub const MAX_ROOTS: usize = 16;
/// Bytes of one DER root certificate.
pub const MAX_ROOT_BYTES: usize = 16 * 1024;
/// Mesh doors of one peer.
pub const MAX_PEER_DOORS: usize = 16;
/// East-west gateways of one peer.
pub const MAX_PEER_GATEWAYS: usize = 64;
/// Services that one peer may export to another.
pub const MAX_IMPORTS_PER_PEER: usize = 10_000;
/// Ports of one imported service.
pub const MAX_PORTS_PER_IMPORT: usize = 64;
/// Nodes of one peer that packets to a port of one imported service are sent to, and of each its addresses.
pub const MAX_ENTRY_NODES: usize = 8;
/// Node ports of all ports of one imported service.
pub const MAX_ENTRIES_PER_IMPORT: usize = MAX_PORTS_PER_IMPORT * MAX_ENTRY_NODES * 2;
/// Namespaces that may know of one service, where not all may.
pub const MAX_EXPORT_TO: usize = 100;
/// Percent of a service port's calls that may go to peers while callers report failures here: half stays, so that it is
/// noticed when they end, and so that whoever lies about failures moves no more.
pub const MAX_OVERFLOW_PERCENT: u8 = 50;
/// Identities that may serve one imported service.
pub const MAX_IDENTITIES_PER_IMPORT: usize = 256;

/// Keys of one trust domain that sign JWT-SVIDs: four of each of fifteen replicas, and some.
pub const MAX_JWT_KEYS: usize = 64;
/// Bytes of one: a point of P-256, uncompressed (SEC 1, section 2.3.3).
pub const JWT_KEY_BYTES: usize = 65;

/// Whether the bytes have the form of a key that signs JWT-SVIDs.
pub fn is_jwt_key(point: &[u8]) -> bool {
    point.len() == JWT_KEY_BYTES && point.first() == Some(&4)
}
