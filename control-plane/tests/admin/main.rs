//! The administrators' side of a replica, over its real doors: waiting for data planes, watching, limits, refusals,
//! metrics and logs.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/privileged.rs"]
mod privileged;

mod absent;
mod barrier;
mod doors;
mod hubble;
mod limits;
mod logs;
mod methods;
mod metrics;
mod raw;
mod roles;
mod unfinished;
mod unread;
mod watch;
