//! What a cluster holds at most. A command that would go beyond is refused whole.

use mesh_model::resource::Kind;

// What the parsers and the doors keep to as well. Objects that are larger than `MAX_OBJECT_BYTES` are lists that
// belong in several objects (EndpointSlices, policies); etcd refuses requests above 1.5 MiB.
pub use mesh_model::limits::{
    MAX_ENTRIES_PER_IMPORT, MAX_EXPORT_TO, MAX_IDENTITIES_PER_IMPORT, MAX_IMPORTS_PER_PEER, MAX_OBJECT_BYTES,
    MAX_PEER_DOORS, MAX_PEER_GATEWAYS, MAX_PORTS_PER_IMPORT, MAX_ROOT_BYTES, MAX_ROOTS,
};

/// Objects in one all-or-nothing `Apply`, and keys in one `Delete`.
pub const MAX_OBJECTS_PER_COMMAND: usize = 5_000;

/// Service ports whose overflow one command changes.
pub const MAX_OVERFLOW_CHANGES: usize = 1_000;

/// Bytes of one command as JSON. What carries commands (the raft log, gRPC between replicas) is sized for it.
pub const MAX_COMMAND_BYTES: usize = 8 * 1024 * 1024;

/// Objects of one kind in the cluster.
pub fn max_objects(kind: Kind) -> usize {
    match kind {
        Kind::Workload | Kind::EndpointSlice => 200_000,
        // Bounded by the proxy ports too: see MIN_PROXY_PORT.
        Kind::Service | Kind::ServiceExport => 20_000,
        Kind::NetworkPolicy
        | Kind::HttpRoute
        | Kind::Sidecar
        | Kind::CiliumNetworkPolicy
        | Kind::CiliumClusterwideNetworkPolicy
        | Kind::ClusterNetworkPolicy => 50_000,
        Kind::Namespace => 10_000,
    }
}

/// Loopback ports of outbound listeners: 16,384 (service, port) pairs. The range ends where Linux' default
/// ephemeral ports begin (`net.ipv4.ip_local_port_range`, 32768 to 60999).
pub const MIN_PROXY_PORT: u16 = 16_384;
/// Inclusive.
pub const MAX_PROXY_PORT: u16 = 32_767;

/// Nodes are given slices of the pod CIDR that leave this many bits to pods: /24 of IPv4.
pub const NODE_SLICE_BITS: u8 = 8;

/// Addresses that a node tells of beside those of its registration.
pub const MAX_NODE_ADDRESSES: usize = 32;
/// Nodes in the cluster.
pub const MAX_NODES: usize = 10_000;
/// Addresses of one workload: one of each family, with room for a second network.
pub const MAX_ADDRESSES_PER_WORKLOAD: usize = 4;
/// Replicas, learners included.
pub const MAX_REPLICAS: usize = 15;
/// Revisions left out when a group is made anew of one survivor's disk: more than can have been written and lost.
pub const RECOVERY_REVISIONS: u64 = 1_000_000;
/// Numbers of replicas, and of registrations and administrators' certificates, that are left out then, and when a
/// backup is restored: what was lost may have given them to somebody.
pub const RECOVERY_REPLICAS: u64 = 1_000;
#[allow(missing_docs)]
pub const RECOVERY_REGISTRATIONS: u64 = 1_000_000;
/// Clusters joined to this one.
pub const MAX_PEERS: usize = 128;
/// Bytes of a private key that is sealed to one replica.
pub const MAX_SEALED_BYTES: usize = 4 * 1024;
/// Keys of one replica that JWT-SVIDs are verified with: one that signs, one that comes, and those of a process that was
/// before. Beyond, the oldest is forgotten.
pub const MAX_JWT_KEYS_OF_A_REPLICA: usize = 4;
/// Seconds for which a key that signs JWT-SVIDs is told: longer than a replica signs with it and than a token may last.
pub const JWT_KEY_SECONDS: u64 = 24 * 3600;
/// Registrations of nodes that ended before their certificates did; beyond, the oldest are forgotten.
pub const MAX_REVOKED: usize = 10_000;
/// Certificates of administrators that have not ended, withdrawn ones included.
pub const MAX_ADMINISTRATORS: usize = 1_000;
/// Seconds that a certificate of an administrator may be valid: as long as any leaf.
pub const MAX_ADMINISTRATOR_SECONDS: u64 = 30 * 24 * 3600;
/// Characters of an administrator's name: it is a segment of a SPIFFE ID, and part of log lines.
pub const MAX_ADMINISTRATOR_NAME: usize = 63;
/// Tokens that are neither forgotten nor too old.
pub const MAX_TOKENS: usize = 1_000;
/// A used or expired token is forgotten this long after its expiry, so that a late caller still learns why.
pub const TOKEN_GRACE_SECONDS: u64 = 24 * 3600;

/// Idempotency keys remembered at most, with [`MAX_REMEMBERED_OUTCOMES`] object outcomes together.
pub const MAX_KEYS: usize = 65_536;
/// See [`MAX_KEYS`].
pub const MAX_REMEMBERED_OUTCOMES: usize = 262_144;
/// Idempotency keys are remembered this long, by the envelopes' time, unless there are more than [`MAX_KEYS`].
/// A retry of which it can't be known any more whether it was applied is refused, see `Refusal::RetryTooLate`.
pub const KEY_MEMORY_MS: u64 = 60_000;

/// Events that a watcher may be behind before it is told "compacted" and lists again,
pub const MAX_HISTORY_EVENTS: usize = 20_000;
/// and their bytes, with objects as JSON.
pub const MAX_HISTORY_BYTES: usize = 64 * 1024 * 1024;
