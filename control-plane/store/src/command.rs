//! Everything that can change a cluster.

use std::net::{IpAddr, Ipv6Addr};

use mesh_model::{
    records::{
        ClusterInfo, ImportedService, NodeFacts, Overflow, PeerRecord, ReplicaRecord, WorkloadBinding,
    },
    resource::{NamespacedName, Object, ObjectKey},
};
use serde::{Deserialize, Serialize};

use crate::{AuthorityCommand, Bytes16, TokenPurpose, TokenRecord};

/// A command with what `apply` may not find out for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The same for every retry of the same write, different for every other one.
    pub key: Bytes16,
    /// The clock of the replica that took the write, milliseconds since 1970.
    pub now_unix_ms: u64,
    /// For a retry: when the same clock made the first attempt. None for the first attempt itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_unix_ms: Option<u64>,
    /// Drawn by the replica that took the write; uids are derived from it.
    pub random: Bytes16,
    /// What is to change.
    pub command: Command,
}

/// What is to change. Each is applied whole or refused whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster, and only that.
    Init(ClusterInfo),
    /// Creates or replaces objects. `metadata.resourceVersion`, where given, is a precondition.
    Apply {
        /// At most [`crate::limits::MAX_OBJECTS_PER_COMMAND`], no key twice.
        objects: Vec<Object>,
        /// Answers what would happen, changes nothing.
        dry_run: bool,
    },
    /// Removes objects; one that is not there is reported as such and is no error.
    Delete {
        /// What to remove.
        keys: Vec<ObjectKey>,
    },
    /// A node agent has proven itself. The node is given a slice of the pod CIDR, the same one when it returns.
    RegisterNode {
        /// DNS label.
        name: String,
        /// Its address in the underlay.
        address: IpAddr,
        /// Of IPv6, if its pods are to have IPv6.
        #[serde(default)]
        address6: Option<Ipv6Addr>,
    },
    /// A node tells what it is like. What it told before is forgotten.
    ReportNode {
        /// As it registered.
        name: String,
        /// All of it.
        facts: NodeFacts,
    },
    /// Forgets a node, its slice and what is bound to it.
    RemoveNode {
        /// As it registered.
        name: String,
    },
    /// A node reports where a declared workload runs.
    BindWorkload {
        /// Must be declared.
        workload: NamespacedName,
        /// The node must be registered, the addresses its own.
        binding: WorkloadBinding,
    },
    /// A node reports that a workload is gone. Nothing happens if it is bound to another node by now.
    UnbindWorkload {
        /// Need not be declared any more.
        workload: NamespacedName,
        /// The node that reports.
        node: String,
    },
    /// Remembers a token that was handed out.
    CreateToken {
        /// Public part of the token.
        id: String,
        /// Purpose, hash and expiry.
        token: TokenRecord,
    },
    /// Withdraws a token that nobody has used yet: from now on it admits nobody.
    RevokeToken {
        /// Public part of the token.
        id: String,
    },
    /// Admits the bearer of a token, once.
    UseToken {
        /// Public part of the token.
        id: String,
        /// SHA-256 of the secret that the bearer showed, lower-case hexadecimal.
        secret_sha256: String,
        /// What the bearer wants to be.
        purpose: TokenPurpose,
        /// Who bears it, for status and for the answer to whoever comes second.
        bearer: String,
    },
    /// Adds a replica or changes its address; whether one that is known votes is left as it is. The id 0 asks for
    /// the next free one; ids are never used again.
    PutReplica(ReplicaRecord),
    /// Admits the bearer of a replica's token, once, under an address: with the token, or not at all.
    AdmitReplica {
        /// Public part of the token.
        token: String,
        /// As in `UseToken`.
        secret_sha256: String,
        /// `host:port` of the new replica's mesh door.
        address: String,
    },
    /// Makes a voter a learner, or a learner a voter once it has caught up.
    SetReplicaRole {
        /// As it was added.
        id: u64,
        /// What it is to be.
        learner: bool,
    },
    /// A replica that has lost its log comes back under the next number. See `apply::replace`.
    ReplaceReplica {
        /// The number that has lost its log.
        old: u64,
        /// Where it will be.
        address: String,
    },
    /// Takes a replica out of the group.
    RemoveReplica {
        /// As it was added.
        id: u64,
    },
    /// Keys, issuers, rotations of the root, revocations.
    Authority(AuthorityCommand),
    /// The first command of a group that was made of one survivor's disk: all other replicas are gone for good.
    KeepOnlyReplica {
        /// The survivor.
        id: u64,
    },
    /// Adds a peer or replaces what is known of it, but for its imports.
    PutPeer(PeerRecord),
    /// What a peer exports has changed. Touches that peer's imports only.
    ImportServices {
        /// The peer.
        cluster: String,
        /// The peer's revision that this reflects; never less than before.
        origin_revision: u64,
        /// New or changed services.
        upserts: Vec<(NamespacedName, ImportedService)>,
        /// Services that it exports no more. Applied after the upserts' names were checked against them.
        removals: Vec<NamespacedName>,
    },
    /// Another share of the calls of these service ports goes to peers; 0 percent: none.
    SetOverflow {
        /// At most [`crate::limits::MAX_OVERFLOW_CHANGES`].
        shares: Vec<(NamespacedName, u16, Overflow)>,
    },
    /// Forgets a peer and all that came from it.
    RemovePeer {
        /// The peer.
        cluster: String,
    },
}
