//! The replicated log, and what is made of it: one [`Replica`] of the cluster's state.
//!
//! openraft stays behind this module, and sled behind `disk`: nothing outside names either. A write goes
//! through `queue` (all waiting commands share one log entry) into openraft, from there through `disk` (durable
//! before it counts) and `network` (to the other replicas), and once committed into `machine`, which applies it
//! to the [`mesh_store::State`] that readers see.

// openraft's error types are what its traits ask for, and large.
#![allow(clippy::result_large_err)]

mod blocking;
mod config;
mod contact;
mod disk;
mod election;
mod error;
mod machine;
mod membership;
mod network;
mod queue;
mod reads;
mod replica;
pub mod salvage;
mod transfer;
mod types;
mod view;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod partition_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use config::{RaftConfig, Timings};
pub use contact::NoQuorum;
pub use disk::is_snapshot;
pub(crate) use disk::room_for_another;
pub use error::{DiskError, OpenError, ReadError, WriteError};
pub use network::{Authorize, DialError, Dialer, RaftService, is_frame};
pub use replica::Replica;
pub use view::{Counters, MemberView, ReplicaView, Role};

/// Makes the store of a group of one replica, whose state is given, in a folder that is not there yet.
///
/// # Errors
/// One sentence that names the file.
pub async fn found(
    dir: &std::path::Path,
    id: u64,
    address: &str,
    state: &mesh_store::State,
) -> Result<(), OpenError> {
    disk::found(dir, id, address, state).await.map_err(|error| OpenError::Raft(error.to_string()))
}
