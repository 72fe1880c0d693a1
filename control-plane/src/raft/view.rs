//! How a replica sees the group, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// What was counted since the start.
    pub counters: Counters,
    /// Why it has stopped.
    pub failure: Option<String>,
}

/// What one replica has counted since its start. All of them only grow, but for the one that says "last".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Log entries written.
    pub entries_written: u64,
    /// Their bytes, as JSON.
    pub entry_bytes: u64,
    /// Groups of entries, votes and removals that were made durable together.
    pub groups_synced: u64,
    /// Data syncs that an acknowledgement waited for: one a group, and now and then another.
    pub waited_syncs: u64,
    /// Data syncs behind the journal, which nobody waited for.
    pub idle_syncs: u64,
    /// Microseconds from taking a group to its being durable, all groups together, and the last one.
    pub group_micros: u64,
    /// See [`Counters::group_micros`].
    pub last_group_micros: u64,
    /// Commands that this replica put into the log as the leader.
    pub commands_proposed: u64,
    /// Log entries that they shared.
    pub entries_proposed: u64,
    /// Linearizable reads asked of this replica.
    pub reads: u64,
    /// Rounds that they shared: to the leader, and of the leader to a majority.
    pub read_rounds: u64,
    /// Snapshots of the state that were taken here.
    pub snapshots_built: u64,
    /// Snapshots that came from the leader.
    pub snapshots_installed: u64,
    /// Bytes of the last snapshot, built or installed.
    pub last_snapshot_bytes: u64,
    /// Microseconds that the last one took to build.
    pub last_snapshot_micros: u64,
}

/// What is counted outside the disk.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    pub(crate) commands_proposed: AtomicU64,
    pub(crate) entries_proposed: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) read_rounds: AtomicU64,
    pub(crate) snapshots_built: AtomicU64,
    pub(crate) snapshots_installed: AtomicU64,
    pub(crate) last_snapshot_bytes: AtomicU64,
    pub(crate) last_snapshot_micros: AtomicU64,
}

impl Counting {
    fn read(&self, disk: &DiskStats) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            entries_written: of(&disk.entries),
            entry_bytes: of(&disk.bytes),
            groups_synced: of(&disk.groups),
            waited_syncs: of(&disk.waited_syncs),
            idle_syncs: of(&disk.idle_syncs),
            group_micros: of(&disk.group_micros),
            last_group_micros: of(&disk.last_group_micros),
            commands_proposed: of(&self.commands_proposed),
            entries_proposed: of(&self.entries_proposed),
            reads: of(&self.reads),
            read_rounds: of(&self.read_rounds),
            snapshots_built: of(&self.snapshots_built),
            snapshots_installed: of(&self.snapshots_installed),
            last_snapshot_bytes: of(&self.last_snapshot_bytes),
            last_snapshot_micros: of(&self.last_snapshot_micros),
        }
    }
}

/// So many more.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

pub(crate) fn view(
    metrics: &Metrics,
    peers: &Peers,
    disk: &DiskStats,
    counters: &Counting,
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
        counters: counters.read(disk),
        failure,
    }
}
