//! The mesh as plain data: objects, identities, policy, services, routes, and what they compile to.
//!
//! This crate does no I/O, reads no clock and draws no random numbers: its manifest names no crate that could.

pub mod compile;
pub mod identity;
pub mod limits;
pub mod policy;
pub mod records;
pub mod resource;
pub mod view;
