//! The way in: listening sockets, filter chains, and HTTP on clients' connections.

mod chain;
mod connection;
mod frames;
mod framing;
mod gate;
mod http;
mod listeners;
mod original;
mod select;
mod watched;

pub use chain::{ChainError, Chains};
pub use listeners::{Bound, Listeners};
pub use select::{Ends, FirstBytes, choose, reachable};
