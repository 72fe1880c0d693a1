//! Counters and logs.

mod access;
mod collector;
mod stats;

pub use access::{AccessDenial, AccessRecord, Flag};
pub use stats::{ClusterStats, Codes, Denials, ListenerStats, Stats};
