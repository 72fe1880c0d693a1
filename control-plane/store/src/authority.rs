//! The certificate authority as the cluster remembers it: sealed root keys, who signs, a rotation under way, and
//! whose certificates are refused. No private key is here in clear.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a root certificate in DER, lower-case hexadecimal.
pub type Fingerprint = String;

/// The [`Fingerprint`] of a certificate.
pub fn fingerprint_of(certificate: &[u8]) -> Fingerprint {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A root's private key, sealed to one replica's key (HPKE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SealedKey {
    pub encapsulated: Vec<u8>,
    pub ciphertext: Vec<u8>,
}

/// What is known of one root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootRecord {
    /// Its key, for each replica that may sign with it.
    pub sealed: BTreeMap<u64, SealedKey>,
    /// Replicas that had a copy when they were removed: whoever has their disk can still open it, until the
    /// root is replaced.
    pub left_with: BTreeSet<u64>,
}

/// The issuing certificate that a replica signs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct IssuerRecord {
    pub serial: String,
    /// The root that it chains to.
    pub root: Fingerprint,
    pub not_before_unix: u64,
    pub not_after_unix: u64,
    /// Longest life of the leaves that it signs.
    pub leaf_seconds: u64,
}

/// How far a rotation of the root is. Each phase ends when everybody concerned has confirmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The new root is in the bundle beside the old; it signs nothing yet.
    Preparing,
    /// Everybody trusts it: replicas get issuers under it.
    Activating,
    /// Nodes and workloads get certificates from those issuers.
    Reissuing,
}

impl Phase {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Preparing => "preparing",
            Phase::Activating => "activating",
            Phase::Reissuing => "reissuing",
        }
    }
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Tells it from the rotations before.
    pub number: u64,
    /// The new root.
    pub to: Fingerprint,
    #[allow(missing_docs)]
    pub phase: Phase,
    /// When the phase began, seconds since 1970.
    pub since_unix: u64,
    /// Whoever has confirmed this generation of the bundles has the new root.
    pub generation: u64,
    /// Nodes and peers that do not confirm are not waited for.
    pub skip_unconfirmed: bool,
    /// The old root goes as soon as the replicas no longer use it.
    pub retire_now: bool,
}

/// What a member of the mesh has told of its trust.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confirmation {
    /// It, and all behind it, use the bundles of this generation.
    pub generation: u64,
    /// Every certificate that it uses chains to this root; empty if they differ.
    pub under: Fingerprint,
}

/// Who confirms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Member {
    Replica(u64),
    Node(String),
    Peer(String),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Member::Replica(id) => write!(f, "replica {id}"),
            Member::Node(name) => write!(f, "node {name}"),
            Member::Peer(cluster) => write!(f, "peer {cluster}"),
        }
    }
}

/// Certificates of a registration that ended before they did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Revocation {
    pub node: String,
    pub at_unix: u64,
    /// No certificate of it can be valid any more from then on.
    pub until_unix: u64,
}

/// A certificate of an administrator, by the number in its serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdministratorRecord {
    /// Whose it is, as its SPIFFE ID says.
    pub name: String,
    /// Who asked for it, in words.
    pub asked_by: String,
    #[allow(missing_docs)]
    pub issued_unix: u64,
    /// It is not valid any more from then on.
    pub until_unix: u64,
    /// Who withdrew it, and when. It is refused since.
    pub withdrawn: Option<Withdrawal>,
}

/// The end of a certificate before its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Withdrawal {
    pub by: String,
    pub at_unix: u64,
}

impl AdministratorRecord {
    /// Whether the certificate still counts, if this is the name in it.
    pub fn admits(&self, name: &str, now_unix: u64) -> bool {
        self.name == name && self.withdrawn.is_none() && now_unix < self.until_unix
    }
}

/// A key that one replica signs JWT-SVIDs with. Its private half is in the memory of that replica and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct JwtKeyRecord {
    pub replica: u64,
    /// A point of P-256, uncompressed.
    pub point: Vec<u8>,
    /// Since when it is told.
    pub since_unix: u64,
    /// No token of it can be valid any more from then on.
    pub until_unix: u64,
}

/// The authority of the cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Authority {
    /// The keys that root keys are sealed to, by replica.
    pub sealing_keys: BTreeMap<u64, Vec<u8>>,
    /// The roots of `ClusterInfo::roots`.
    pub roots: BTreeMap<Fingerprint, RootRecord>,
    /// The root that issuers are to be signed by.
    pub active: Fingerprint,
    /// By replica.
    pub issuers: BTreeMap<u64, IssuerRecord>,
    #[allow(missing_docs)]
    pub rotation: Option<Rotation>,
    /// Rotations so far.
    pub rotations: u64,
    /// Goes up whenever the roots of this cluster or of a peer change.
    pub generation: u64,
    #[allow(missing_docs)]
    pub confirmed_replicas: OrdMap<u64, Confirmation>,
    #[allow(missing_docs)]
    pub confirmed_nodes: OrdMap<String, Confirmation>,
    #[allow(missing_docs)]
    pub confirmed_peers: OrdMap<String, Confirmation>,
    /// Registrations whose certificates are refused.
    pub revoked: BTreeMap<u64, Revocation>,
    /// Certificates of administrators that are not over yet. One that is not here is nobody's.
    #[serde(default)]
    pub administrators: OrdMap<u64, AdministratorRecord>,
    /// Oldest first.
    #[serde(default)]
    pub jwt_keys: Vec<JwtKeyRecord>,
}

impl Authority {
    /// What a member has confirmed.
    pub fn confirmation(&self, member: &Member) -> Option<&Confirmation> {
        match member {
            Member::Replica(id) => self.confirmed_replicas.get(id),
            Member::Node(name) => self.confirmed_nodes.get(name),
            Member::Peer(cluster) => self.confirmed_peers.get(cluster),
        }
    }

    /// Sets what a member has confirmed, and returns what it had.
    pub(crate) fn set_confirmation(
        &mut self,
        member: &Member,
        new: Option<Confirmation>,
    ) -> Option<Confirmation> {
        match member {
            Member::Replica(id) => crate::state::put(&mut self.confirmed_replicas, id, new),
            Member::Node(name) => crate::state::put(&mut self.confirmed_nodes, name, new),
            Member::Peer(cluster) => crate::state::put(&mut self.confirmed_peers, cluster, new),
        }
    }

    /// Longest life of any leaf of this cluster, in seconds.
    pub fn longest_leaf_seconds(&self) -> u64 {
        self.issuers.values().map(|issuer| issuer.leaf_seconds).max().unwrap_or(0)
    }
}

/// What changes the authority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AuthorityCommand {
    /// A replica says which key is to be sealed to.
    SealingKey {
        /// Itself.
        replica: u64,
        /// X25519, 32 bytes.
        public: Vec<u8>,
    },
    /// A root's key for one replica. Nothing happens if it has one, or another key by now.
    Seal {
        /// Which root.
        root: Fingerprint,
        /// For whom.
        replica: u64,
        /// The key that it was sealed to.
        public: Vec<u8>,
        #[allow(missing_docs)]
        sealed: SealedKey,
    },
    /// A replica signs with a new issuer.
    Issuer {
        /// Itself.
        replica: u64,
        #[allow(missing_docs)]
        issuer: IssuerRecord,
    },
    /// A replica is about to sign JWT-SVIDs with another key.
    JwtKey {
        /// Itself.
        replica: u64,
        /// As in [`JwtKeyRecord`].
        point: Vec<u8>,
    },
    /// Begins a rotation: the new root enters the bundle.
    BeginRotation {
        /// The new root, DER.
        certificate: Vec<u8>,
        /// Its key, for every replica.
        sealed: BTreeMap<u64, SealedKey>,
    },
    /// The phase is over. Refused if the rotation is not in that phase.
    EndPhase {
        /// Of the rotation.
        number: u64,
        #[allow(missing_docs)]
        phase: Phase,
    },
    /// A rotation is not to wait for everybody.
    Hurry {
        /// Of the rotation.
        number: u64,
        /// See [`Rotation::skip_unconfirmed`].
        skip_unconfirmed: bool,
        /// See [`Rotation::retire_now`].
        retire_now: bool,
    },
    /// A member has taken over bundles and certificates.
    Confirm {
        #[allow(missing_docs)]
        member: Member,
        #[allow(missing_docs)]
        confirmation: Confirmation,
    },
    /// Ends a node's registration: its certificates and those of its workloads are refused from now on.
    RevokeNode {
        /// As it registered.
        name: String,
    },
    /// An administrator is to be given a certificate: under a number of its own, by which it can be withdrawn.
    AdmitAdministrator {
        /// A segment of a SPIFFE ID.
        name: String,
        /// Who asks for it, in words.
        asked_by: String,
        /// For how long it is valid.
        seconds: u64,
    },
    /// Every certificate of an administrator is refused from now on.
    WithdrawAdministrator {
        /// As in the certificates.
        name: String,
        /// Who asks for it, in words.
        by: String,
        /// How tokens that the administrator had made name him: those that nobody has used are withdrawn too.
        #[serde(default)]
        tokens_of: String,
    },
    /// Forgets revocations of which no certificate can be valid any more, administrators whose certificates ended, and
    /// keys of which no token can be valid any more.
    ForgetRevoked,
}
