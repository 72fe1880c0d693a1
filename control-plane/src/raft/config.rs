//! What a replica is started with.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::OpenError;
use crate::doors::bucket::Rate;

/// Commands in one log entry, at most.
pub(crate) const MAX_BATCH_COMMANDS: usize = 512;
/// Bytes of JSON in one log entry, unless a single command is larger.
pub(crate) const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Commands that wait for their entry; further ones wait before they enter.
pub(crate) const MAX_QUEUED_COMMANDS: usize = 4096;
/// Entries that are on their way at once: while one waits for the others' disks, the next is written here.
pub(crate) const MAX_ENTRIES_IN_FLIGHT: usize = 2;
/// Bytes of entries in one message to another replica, unless a single entry is larger.
pub(crate) const MAX_APPEND_BYTES: usize = 1024 * 1024;
/// An append to another replica that was not answered for so long is sent again.
pub(crate) const APPEND_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of one message between replicas: what a command may have, in JSON within JSON, with room.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of a snapshot in one message.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes of a snapshot that is taken from another replica.
pub(crate) const MAX_SNAPSHOT_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// A write that has found no leader or no majority for so long is answered with an error.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// The same for a linearizable read.
pub(crate) const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Calls of one replica that are answered at once; further ones are refused. It has a handful of its own accord.
pub(crate) const MAX_CALLS_PER_REPLICA: usize = 64;
/// Requests for votes that one replica may send. An election takes two.
pub(crate) const VOTES: Rate = Rate { per_second: 20, burst: 40 };
/// A learner that is at most so many entries behind becomes a voter.
pub(crate) const PROMOTION_LAG: u64 = 64;

/// How fast a lost leader is noticed. A follower that hears nothing for `election_max` plus its own draw from
/// `election_min..election_max` stands for election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Between two heartbeats of the leader; also the limit of one of them. Appends may take longer.
    pub heartbeat: Duration,
    /// Least draw.
    pub election_min: Duration,
    /// Greatest draw.
    pub election_max: Duration,
}

impl Timings {
    /// All of them in the proportions of the default.
    pub fn paced_by(heartbeat: Duration) -> Self {
        Self { heartbeat, election_min: heartbeat * 2, election_max: heartbeat * 7 / 2 }
    }

    /// openraft's own lease of the leader: after it, a follower's vote can be had by openraft's rules. It is as short
    /// as openraft allows, because `election` has a longer one, which a transfer of leadership passes by.
    pub(crate) fn lease(&self) -> Duration {
        self.heartbeat + Duration::from_millis(2)
    }
}

/// For replicas on one LAN: a killed leader is replaced in 1.1 to 1.7 s, and a pause of a second deposes nobody.
impl Default for Timings {
    fn default() -> Self {
        Self::paced_by(Duration::from_millis(200))
    }
}

/// What a replica is started with.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// Unique in the cluster, never used again.
    pub id: u64,
    /// `host:port` under which the other replicas reach this one.
    pub address: String,
    /// A folder of this replica's own; it is created.
    pub dir: PathBuf,
    /// How fast a lost leader is noticed.
    pub timings: Timings,
    /// A snapshot is taken after so many log entries.
    pub snapshot_after: u64,
    /// So many entries before the snapshot are kept, for replicas that are a little behind.
    pub keep_entries: u64,
    /// The group that it belongs to; replicas of another one are refused. A group that is made anew of one
    /// survivor's disk has a new name, so that the others of old can't come back to it.
    pub group: String,
}

impl RaftConfig {
    /// The defaults for a replica.
    pub fn new(id: u64, address: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            address: address.into(),
            dir: dir.into(),
            timings: Timings::default(),
            snapshot_after: 5_000,
            keep_entries: 1_000,
            group: String::new(),
        }
    }

    pub(crate) fn openraft(&self) -> Result<Arc<openraft::Config>, OpenError> {
        let Timings { heartbeat, election_min, election_max } = self.timings;
        if !(heartbeat < election_min && election_min < election_max) {
            return Err(OpenError::Config(format!(
                "heartbeat {heartbeat:?}, election {election_min:?} to {election_max:?}: each must be more than the one before"
            )));
        }
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "isthmus".to_owned(),
            heartbeat_interval: millis(heartbeat),
            // `election` decides who stands and when; of these only the lease is left.
            enable_elect: false,
            election_timeout_min: millis(self.timings.lease()) - 1,
            election_timeout_max: millis(self.timings.lease()),
            install_snapshot_timeout: 15_000,
            max_payload_entries: 256,
            replication_lag_threshold: self.snapshot_after.saturating_mul(2),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES as u64,
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: (self.keep_entries / 4).clamp(1, 256),
            ..openraft::Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| OpenError::Config(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_notices_a_lost_leader_after_1100_to_1400_milliseconds() {
        let timings = Timings::default();
        let after = |draw: Duration| (timings.election_max + draw).as_millis();
        assert_eq!((after(timings.election_min), after(timings.election_max)), (1_100, 1_400));
    }

    #[test]
    fn the_defaults_are_valid_and_timings_that_can_not_work_are_refused() {
        let mut config = RaftConfig::new(1, "127.0.0.1:1", "/nowhere");
        assert!(config.openraft().is_ok());
        config.timings.heartbeat = config.timings.election_min;
        assert!(matches!(config.openraft(), Err(OpenError::Config(_))));
    }
}
