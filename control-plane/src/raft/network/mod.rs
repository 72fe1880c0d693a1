//! Replica to replica: gRPC, one connection to each.

mod append;
mod client;
mod frames;
mod limits;
mod peers;
mod server;
mod wire;

pub use frames::is_frame;
pub use peers::{DialError, Dialer};
pub use server::{Authorize, RaftService};

pub(crate) use client::{Factory, LeaderError, forward, pre_vote, read_index, take_over};
pub(crate) use peers::Peers;
pub(crate) use wire::{Forward, PreVote, PreVoted, TakeOver};
