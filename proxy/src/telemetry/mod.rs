//! Counters and logs.

mod access;
mod collector;
mod stats;

pub use access::{AccessRecord, Flag};
pub use stats::{ClusterStats, Codes, ListenerStats, Stats};
