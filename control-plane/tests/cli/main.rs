//! What a user types, against a running cluster of real processes: what it prints, and how it exits.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/process.rs"]
mod process;
#[path = "../admin/raw.rs"]
mod raw;
#[path = "../common/writers.rs"]
mod writers;

mod administrators;
mod authority;
mod data_planes;
mod doors;
mod hand_over;
mod nodes;
mod peers;
mod replicas;
mod service_unit;
mod silent;
