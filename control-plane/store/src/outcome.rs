//! What becomes of a command.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_model::{
    records::NodeRecord,
    resource::{ObjectKey, Protocol},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What becomes of a command.
pub type Outcome = Result<Applied, Refusal>;

/// What an accepted command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision at which it took effect. If it changed nothing: the revision it was found to hold at.
    pub revision: u64,
    /// One per object of an `Apply` or key of a `Delete`, in their order.
    pub outcomes: Vec<ObjectOutcome>,
    /// What was allocated on behalf of the caller.
    pub granted: Granted,
    /// The envelope had been applied before; this is the answer it was given then.
    pub replayed: bool,
}

/// What a command allocates on behalf of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one for a command, and it is moved a few times")]
pub enum Granted {
    /// Nothing that the caller needs to know.
    #[default]
    Nothing,
    /// `RegisterNode`: the record with its slice of the pod CIDR.
    Node(NodeRecord),
    /// `PutReplica`, `AdmitReplica`: the replica's id.
    Replica(u64),
    /// `BindWorkload`: the number of the workload's identity.
    Identity(u32),
    /// `AdmitAdministrator`: the number of the certificate.
    Administrator(u64),
}

/// What happened to one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectOutcome {
    /// Which.
    pub key: ObjectKey,
    /// What.
    pub change: ObjectChange,
}

/// kubectl's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ObjectChange {
    Created,
    Configured,
    Unchanged,
    Deleted,
    NotFound,
}

impl ObjectChange {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectChange::Created => "created",
            ObjectChange::Configured => "configured",
            ObjectChange::Unchanged => "unchanged",
            ObjectChange::Deleted => "deleted",
            ObjectChange::NotFound => "not found",
        }
    }
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("this cluster is not initialised: run `clustermesh init` first")]
    NotInitialised,
    #[error("this cluster is already initialised as {name:?}")]
    AlreadyInitialised { name: String },
    #[error("{field}: {value:?} {problem}")]
    Invalid { field: String, value: String, problem: String },
    #[error("{what}: {count} is more than the {limit} that a cluster may hold")]
    Limit { what: String, count: usize, limit: usize },
    #[error("{key}: metadata.resourceVersion: {expected} {}", match .found {
        Some(stored) => format!("is not the stored one ({stored}): read it again and repeat the change"),
        None => "is of an object that does not exist (any more): remove resourceVersion to create it".to_owned(),
    })]
    Conflict { key: ObjectKey, expected: u64, found: Option<u64> },
    #[error("{key} is named twice in one request")]
    Twice { key: ObjectKey },
    #[error("{service}: spec.clusterIP {address} is not a usable address of the service CIDR {cidr}")]
    AddressOutside { service: String, address: IpAddr, cidr: IpNet },
    #[error("{service}: spec.clusterIP {address} is already that of {holder}")]
    AddressTaken { service: String, address: IpAddr, holder: String },
    #[error("{service}: spec.clusterIP is {current} and can't be changed: delete the service first")]
    AddressFixed { service: String, current: IpAddr },
    #[error("{service}: spec.ports[].nodePort {port}/{} is already that of {holder}", protocol.as_str())]
    NodePortTaken { service: String, port: u16, protocol: Protocol, holder: String },
    #[error("{what} are used up: none is left of {range}")]
    Exhausted { what: String, range: String },
    #[error("there is no {what} {name:?}")]
    Unknown { what: String, name: String },
    #[error(
        "workload {workload} is bound to node {node}: it must end there before it can run on another node"
    )]
    BoundElsewhere { workload: String, node: String },
    #[error(
        "workload {workload}: address {address} is neither of node {node}'s slice {slice} nor declared for it"
    )]
    ForeignAddress { workload: String, address: IpAddr, node: String, slice: IpNet },
    #[error("address {address} belongs to {holder} already")]
    AddressHeld { address: IpAddr, holder: String },
    #[error(
        "the token {id:?} is unknown, wrong, withdrawn, or was forgotten after it expired: create a new one"
    )]
    TokenUnknown { id: String },
    #[error("the token {id:?} expired {seconds_ago} s ago: create a new one")]
    TokenExpired { id: String, seconds_ago: u64 },
    #[error("the token {id:?} was used by {by:?} already: a token admits once, create a new one")]
    TokenUsed { id: String, by: String },
    #[error(
        "the token {id:?} was used by {by:?} already: there is nothing to withdraw, revoke or remove {by} itself"
    )]
    TokenSpent { id: String, by: String },
    #[error("the token {id:?} is for {made_for}, not for {wanted}")]
    TokenPurpose { id: String, made_for: String, wanted: String },
    #[error(
        "the write was first tried {seconds_ago} s ago, and what became of it is not remembered any more ({limit_seconds} s, or {limit_writes} writes): read what is there before you write again"
    )]
    RetryTooLate { seconds_ago: u64, limit_seconds: u64, limit_writes: usize },
    #[error(
        "peer {cluster:?} sent its revision {got} after its revision {have}: it went back, so it is not believed"
    )]
    PeerWentBack { cluster: String, have: u64, got: u64 },
    #[error("peer {cluster:?} has the {what} {value:?}, which {holder} has already")]
    PeerClash { cluster: String, what: String, value: String, holder: String },
}

impl Refusal {
    /// The same request may succeed after the caller has read again; the others need a different request.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Refusal::Conflict { .. })
    }

    pub(crate) fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Refusal {
        Refusal::Invalid { field: field.into(), value: value.to_string(), problem: problem.into() }
    }
}
