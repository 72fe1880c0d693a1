//! What a user types, against a running cluster of real processes: what it prints, and how it exits.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/history.rs"]
mod history;
#[path = "../common/process.rs"]
mod process;
#[path = "../admin/raw.rs"]
mod raw;
#[path = "../common/writers.rs"]
mod writers;

mod administrators;
mod authority;
mod backup;
mod data_planes;
mod doors;
mod hand_over;
mod nodes;
mod peers;
mod recovery;
mod replicas;
mod roles;
mod service_unit;
mod silent;
