//! Replica to replica: gRPC, one connection to each.

mod append;
mod client;
mod peers;
mod server;
mod wire;

pub use peers::{DialError, Dialer};
pub use server::{Authorize, RaftService};

pub(crate) use client::{Factory, LeaderError, forward, read_index};
pub(crate) use peers::Peers;
pub(crate) use wire::Forward;
