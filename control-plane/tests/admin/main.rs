//! The administrators' side of a replica, over its real doors: waiting for data planes, watching, limits, refusals,
//! metrics and logs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod absent;
mod barrier;
mod doors;
mod limits;
mod logs;
mod metrics;
mod raw;
mod watch;
