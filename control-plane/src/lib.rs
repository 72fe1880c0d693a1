//! The replicated control plane of one cluster: the shell around `mesh-model` and `mesh-store`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod authz;
pub mod ca;
pub mod config;
pub mod doors;
pub mod federation;
pub mod group;
pub mod hubble;
pub mod notify;
pub mod overflow;
pub mod quarantine;
pub mod raft;
pub mod recover;
pub mod replicas;
pub mod restore;
pub mod shown;
pub mod sources;
pub mod start;
pub mod telemetry;
pub mod views;
pub mod xds;
