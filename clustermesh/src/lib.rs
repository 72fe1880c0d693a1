//! How clusters join and what they tell each other.
//!
//! Everything here but `token_source` is pure: bytes and records in, records or a typed error out. Streams, raft and the clock
//! are the control plane's. [`manifest`] is how people write objects down; the command line lives beside this library,
//! in the binary `clustermesh`.
#![forbid(unsafe_code)]

pub mod csds;
pub mod export;
pub mod failover;
pub mod import;
pub mod manifest;
mod names;
pub mod token;
pub mod token_source;
pub mod trust;
