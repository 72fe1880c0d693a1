//! Who may do what. Every service asks here, and nothing else decides.
//!
//! Two questions, both pure: [`role`] says who a caller is, [`allowed`] whether that role may take an action.
//! What is *within* an action (which node's workloads, which peer's services) is checked beside the action,
//! because only it knows the object.

mod table;

use std::fmt;

use mesh_model::identity::{self, SpiffeId, TrustDomain};
use mesh_store::AdministratorRecord;

pub use table::allowed;

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Root or the process's own user, by the local socket.
    LocalRoot,
    /// A replica of this cluster, by its ID.
    Replica(u64),
    /// A node agent of this cluster, by the node's name.
    Node(String),
    /// A person or tool with an administrator's certificate of this cluster.
    Admin(String),
    /// A workload of this cluster.
    Workload(SpiffeId),
    /// A replica of a cluster that has joined.
    Peer(TrustDomain),
    /// A node whose registration has ended, or an administrator whose certificate was withdrawn; in words.
    Revoked(String),
    /// A certificate that is genuine, of somebody who has no business here.
    Stranger(SpiffeId),
    /// No certificate.
    Anonymous,
}

/// The rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    LocalRoot,
    Replica,
    Node,
    Admin,
    Workload,
    Peer,
    Revoked,
    Stranger,
    Anonymous,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 9] = [
        Role::LocalRoot,
        Role::Replica,
        Role::Node,
        Role::Admin,
        Role::Workload,
        Role::Peer,
        Role::Revoked,
        Role::Stranger,
        Role::Anonymous,
    ];
}

/// The columns of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `Admin.Apply`, `Admin.Delete`
    Write,
    /// `Admin.List`, `Admin.Watch`, `Admin.Wait`
    Read,
    /// `Recovery.Backup`, `Recovery.Rejoin`
    Backup,
    /// `Admin.Status`, `Admin.WaitHere`
    Status,
    /// `Admin.Observe`
    Observe,
    /// `ClientStatusDiscoveryService.*`: what every data plane was sent, contents included.
    ClientStatus,
    /// `Admin.CreateToken`, `Tokens.*`
    CreateToken,
    /// `Admin.Join`: makes this cluster join another.
    JoinMesh,
    /// `Replicas.*`: takes replicas out of the raft group, and says which of them vote.
    ManageReplicas,
    /// `Raft.*`, `Recovery.Replace`
    Raft,
    /// `Bootstrap.*`: a token in the request is the proof.
    Bootstrap,
    /// `Federation.Join`: a token in the request is the proof.
    AcceptPeer,
    /// `Certificates.SignWorkload`, for workloads of the caller's own node.
    SignWorkload,
    /// `Certificates.RenewNode`, for the caller's own node.
    RenewNode,
    /// `Certificates.ReportTrust`, for the caller's own node.
    ReportTrust,
    /// `Endpoints.*`, for the caller's own node.
    ReportEndpoints,
    /// ADS, LRS and the discovery services of one type: the views of agents, and of the workloads on their node.
    SubscribeAsNode,
    /// ADS: what this cluster exports.
    SubscribeAsPeer,
    /// `Federation.ConfirmTrust`
    ConfirmTrust,
    /// `CertificateAuthority.Status`, `CertificateAuthority.ListNodes`
    InspectAuthority,
    /// `CertificateAuthority.Rotate`
    RotateRoot,
    /// `CertificateAuthority.RevokeNode`, `CertificateAuthority.RemoveNode`
    EndRegistration,
    /// `CertificateAuthority.*Administrator*`: makes, lists and withdraws administrators' certificates.
    ManageAdministrators,
}

impl Action {
    /// Every action.
    pub const ALL: [Action; 23] = [
        Action::Write,
        Action::Read,
        Action::Backup,
        Action::Status,
        Action::Observe,
        Action::ClientStatus,
        Action::CreateToken,
        Action::JoinMesh,
        Action::ManageReplicas,
        Action::Raft,
        Action::Bootstrap,
        Action::AcceptPeer,
        Action::SignWorkload,
        Action::RenewNode,
        Action::ReportTrust,
        Action::ReportEndpoints,
        Action::SubscribeAsNode,
        Action::SubscribeAsPeer,
        Action::ConfirmTrust,
        Action::InspectAuthority,
        Action::RotateRoot,
        Action::EndRegistration,
        Action::ManageAdministrators,
    ];
}

impl Caller {
    /// A node's certificate counts for as long as its registration does: until the node is revoked or removed, or
    /// registers anew. `current` is the registration of a node's name, and `last` the last that this replica has heard
    /// of: it lets a later one pass, and finds nothing of its there. One without a registration could not be revoked, and
    /// is nobody's.
    pub fn unless_revoked(
        self,
        registration: Option<u64>,
        last: u64,
        current: impl FnOnce(&str) -> Option<u64>,
    ) -> Self {
        let Caller::Node(name) = &self else { return self };
        let stands = registration.is_some_and(|number| number > last || current(name) == Some(number));
        if stands {
            return self;
        }
        Caller::Revoked(format!("node {name}, whose registration has ended"))
    }

    /// An administrator's certificate counts if the cluster knows of it, by the number in its serial, and for as long as
    /// that was neither withdrawn nor is over, also on a connection that outlives it. One without a number could not be
    /// withdrawn, and is nobody's.
    pub fn unless_withdrawn(
        self,
        number: Option<u64>,
        record: impl FnOnce(u64) -> Option<AdministratorRecord>,
        now_unix: u64,
    ) -> Self {
        let Caller::Admin(name) = &self else { return self };
        let record = number.and_then(record);
        if record.as_ref().is_some_and(|record| record.admits(name, now_unix)) {
            return self;
        }
        let why = match record.map(|record| record.withdrawn.is_some()) {
            Some(true) => "was withdrawn",
            Some(false) => "has ended, or is another's",
            None => "has ended, or is not known here",
        };
        Caller::Revoked(format!("administrator {name}, whose certificate {why}"))
    }

    /// The row of the table.
    pub fn role(&self) -> Role {
        match self {
            Caller::LocalRoot => Role::LocalRoot,
            Caller::Replica(_) => Role::Replica,
            Caller::Node(_) => Role::Node,
            Caller::Admin(_) => Role::Admin,
            Caller::Workload(_) => Role::Workload,
            Caller::Peer(_) => Role::Peer,
            Caller::Revoked(_) => Role::Revoked,
            Caller::Stranger(_) => Role::Stranger,
            Caller::Anonymous => Role::Anonymous,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::LocalRoot => f.write_str("the local administrator"),
            Caller::Replica(id) => write!(f, "replica {id}"),
            Caller::Node(name) => write!(f, "node {name}"),
            Caller::Admin(name) => write!(f, "administrator {name}"),
            Caller::Workload(id) => write!(f, "workload {id}"),
            Caller::Peer(domain) => write!(f, "peer {domain}"),
            Caller::Revoked(who) => write!(f, "{who},"),
            Caller::Stranger(id) => write!(f, "{id}"),
            Caller::Anonymous => f.write_str("a caller without a certificate"),
        }
    }
}

/// Who the holder of a *verified* certificate is to a cluster of trust domain `own`.
///
/// `is_peer` says whether a trust domain is one of a cluster that has joined.
pub fn caller(
    certificate: Option<&SpiffeId>,
    own: &TrustDomain,
    is_peer: impl FnOnce(&TrustDomain) -> bool,
) -> Caller {
    let Some(id) = certificate else { return Caller::Anonymous };
    let domain = id.trust_domain();
    if domain == own {
        return match id.role() {
            identity::Role::Replica(number) => Caller::Replica(number),
            identity::Role::Node(name) => Caller::Node(name.to_owned()),
            identity::Role::Admin(name) => Caller::Admin(name.to_owned()),
            identity::Role::Workload { .. } => Caller::Workload(id.clone()),
            identity::Role::Other => Caller::Stranger(id.clone()),
        };
    }
    match id.role() {
        // A peer's nodes, administrators and workloads have no say here.
        identity::Role::Replica(_) if is_peer(domain) => Caller::Peer(domain.clone()),
        _ => Caller::Stranger(id.clone()),
    }
}

/// The refusal that a caller gets to read.
///
/// # Errors
/// One sentence, if the table says no.
pub fn check(caller: &Caller, action: Action) -> Result<(), tonic::Status> {
    if allowed(caller.role(), action) {
        return Ok(());
    }
    let sentence = format!("{caller} may not do this ({action:?})");
    Err(match caller {
        Caller::Anonymous => tonic::Status::unauthenticated(sentence),
        _ => tonic::Status::permission_denied(sentence),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replicas_of_joined_clusters_are_peers() {
        let own = TrustDomain::parse("west.example").unwrap();
        let east = TrustDomain::parse("east.example").unwrap();
        let who = |id: &SpiffeId, joined: bool| caller(Some(id), &own, |_| joined).role();
        assert_eq!(who(&SpiffeId::replica(&east, 1), true), Role::Peer);
        assert_eq!(who(&SpiffeId::replica(&east, 1), false), Role::Stranger);
        for id in
            [SpiffeId::node(&east, "n"), SpiffeId::admin(&east, "a"), SpiffeId::workload(&east, "n", "s")]
        {
            assert_eq!(who(&id, true), Role::Stranger, "{id}");
        }
    }

    #[test]
    fn own_certificates_are_told_apart_by_their_path() {
        let own = TrustDomain::parse("west.example").unwrap();
        let who = |id: SpiffeId| caller(Some(&id), &own, |_| true);
        assert_eq!(who(SpiffeId::replica(&own, 3)), Caller::Replica(3));
        assert_eq!(who(SpiffeId::node(&own, "n1")), Caller::Node("n1".to_owned()));
        assert_eq!(who(SpiffeId::admin(&own, "kim")), Caller::Admin("kim".to_owned()));
        assert_eq!(who(SpiffeId::workload(&own, "isthmus", "replica")).role(), Role::Workload);
        assert_eq!(who(SpiffeId::parse("spiffe://west.example/x").unwrap()).role(), Role::Stranger);
        assert_eq!(caller(None, &own, |_| true), Caller::Anonymous);
    }

    #[test]
    fn a_node_is_nobody_once_its_registration_is_revoked_or_replaced() {
        let who = |number, last, now: Option<u64>| {
            Caller::Node("n1".to_owned()).unless_revoked(number, last, |_| now).role()
        };
        assert_eq!(who(Some(3), 3, Some(3)), Role::Node);
        assert_eq!(who(Some(3), 9, Some(4)), Role::Revoked, "it has registered anew");
        assert_eq!(who(Some(3), 3, None), Role::Revoked, "it was revoked, or removed");
        assert_eq!(who(Some(3), 9, Some(2)), Role::Revoked, "of a cluster that was lost after the backup");
        assert_eq!(who(Some(3), 2, Some(2)), Role::Node, "this replica lags");
        assert_eq!(who(Some(3), 2, None), Role::Node, "this replica lags");
        assert_eq!(who(None, 0, None), Role::Revoked, "it could not be revoked");
        let admin = Caller::Admin("a".to_owned());
        assert_eq!(admin.unless_revoked(Some(3), 9, |_| None).role(), Role::Admin);
    }

    #[test]
    fn an_administrator_is_nobody_without_a_record_that_admits() {
        let record = |withdrawn: bool| AdministratorRecord {
            name: "kim".to_owned(),
            asked_by: "the local administrator".to_owned(),
            issued_unix: 100,
            until_unix: 200,
            withdrawn: withdrawn.then(|| mesh_store::Withdrawal { by: "lee".to_owned(), at_unix: 150 }),
        };
        let who = |name: &str, number: Option<u64>, known: Option<AdministratorRecord>, now: u64| {
            Caller::Admin(name.to_owned()).unless_withdrawn(number, |_| known, now)
        };
        assert_eq!(who("kim", Some(3), Some(record(false)), 199).role(), Role::Admin);
        for (caller, words) in [
            (who("kim", Some(3), Some(record(true)), 150), "was withdrawn"),
            (who("kim", Some(3), Some(record(false)), 200), "has ended"),
            (who("lee", Some(3), Some(record(false)), 150), "is another's"),
            (who("kim", Some(3), None, 150), "not known here"),
            (who("kim", None, Some(record(false)), 150), "not known here"),
        ] {
            assert_eq!(caller.role(), Role::Revoked, "{caller}");
            assert!(caller.to_string().contains(words), "{caller}");
        }
        let node = Caller::Node("n1".to_owned());
        assert_eq!(node.clone().unless_withdrawn(None, |_| None, 0), node);
    }

    #[test]
    fn a_refusal_names_caller_and_action() {
        let status = check(&Caller::Node("n1".to_owned()), Action::Write).unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        assert!(status.message().contains("node n1") && status.message().contains("Write"), "{status}");
        assert_eq!(check(&Caller::Anonymous, Action::Read).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
