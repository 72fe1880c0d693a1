//! How a replica sees the group, for status and metrics.

use std::sync::atomic::Ordering;

use super::{contact::NoQuorum, disk::DiskStats, network::Peers, types::Metrics};

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes the writes.
    Leader,
    /// Votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Receives the log, does not vote.
    Learner,
    /// Does not take part any more.
    Stopped,
}

impl Role {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        }
    }
}

/// One member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    #[allow(missing_docs)]
    pub id: u64,
    /// `host:port`
    pub address: String,
    /// As the group's membership says; a replica knows of itself only whether it stands for election.
    pub role: Role,
    /// Counts in majorities.
    pub voter: bool,
    /// Whether it has answered lately; None where this replica has not asked.
    pub reachable: Option<bool>,
    /// The last log entry that it has; None where this replica can't know.
    pub matched: Option<u64>,
    /// Log entries that it lacks; None where this replica can't know.
    pub lag: Option<u64>,
}

/// How a replica sees the group and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaView {
    #[allow(missing_docs)]
    pub id: u64,
    #[allow(missing_docs)]
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// None while there is none, or none is known.
    pub leader: Option<u64>,
    #[allow(missing_docs)]
    pub last_log_index: Option<u64>,
    #[allow(missing_docs)]
    pub applied_index: Option<u64>,
    /// The last entry in the snapshot.
    pub snapshot_index: Option<u64>,
    /// On the leader: milliseconds since a majority has confirmed it. Beyond a few seconds there is none.
    pub quorum_ack_ms: Option<u64>,
    /// No majority can be reached, as far as this replica knows.
    pub no_quorum: Option<NoQuorum>,
    /// The group is being changed: until it is done, two sets of voters decide together.
    pub changing: bool,
    /// The raft group's name.
    pub group: String,
    /// By id.
    pub members: Vec<MemberView>,
    /// Log entries written since the start.
    pub entries_written: u64,
    /// Groups of them made durable since the start: two disk syncs each.
    pub groups_synced: u64,
    /// Why it has stopped.
    pub failure: Option<String>,
}

pub(crate) fn view(
    metrics: &Metrics,
    peers: &Peers,
    disk: &DiskStats,
    no_quorum: Option<NoQuorum>,
) -> ReplicaView {
    let failure = metrics.running_state.as_ref().err().map(ToString::to_string);
    let role = match metrics.state {
        _ if failure.is_some() => Role::Stopped,
        openraft::ServerState::Leader => Role::Leader,
        openraft::ServerState::Follower => Role::Follower,
        openraft::ServerState::Candidate => Role::Candidate,
        openraft::ServerState::Learner => Role::Learner,
        openraft::ServerState::Shutdown => Role::Stopped,
    };
    let membership = metrics.membership_config.membership();
    let leads = role == Role::Leader;
    // A leader of which nobody has heard for long is none.
    let leader = metrics.current_leader.filter(|_| no_quorum.is_none());
    let members = membership.nodes().map(|(id, node)| {
        let own = *id == metrics.id;
        let voter = membership.voter_ids().any(|voter| voter == *id);
        let replicated = metrics.replication.as_ref().and_then(|all| all.get(id).copied());
        let matched = if own {
            metrics.last_log_index
        } else {
            replicated.map(|matched| matched.map_or(0, |matched| matched.index))
        };
        let lag = matched.map(|matched| metrics.last_log_index.unwrap_or(0).saturating_sub(matched));
        let role = match () {
            () if own => role,
            () if leader == Some(*id) => Role::Leader,
            () if voter => Role::Follower,
            () => Role::Learner,
        };
        let lag = if leads || own { lag } else { None };
        let reachable = match () {
            () if own => Some(true),
            () if leads || no_quorum.is_some() => Some(peers.reachable(*id)),
            () => None,
        };
        MemberView { id: *id, address: node.addr.clone(), role, voter, reachable, matched, lag }
    });
    ReplicaView {
        id: metrics.id,
        role,
        term: metrics.current_term,
        leader,
        last_log_index: metrics.last_log_index,
        applied_index: metrics.last_applied.map(|last| last.index),
        snapshot_index: metrics.snapshot.map(|last| last.index),
        quorum_ack_ms: metrics.millis_since_quorum_ack,
        members: members.collect(),
        no_quorum,
        changing: membership.get_joint_config().len() > 1,
        group: peers.group().to_owned(),
        entries_written: disk.entries.load(Ordering::Relaxed),
        groups_synced: disk.groups.load(Ordering::Relaxed),
        failure,
    }
}
