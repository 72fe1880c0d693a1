//! Where names are, as the pods of this node were told by DNS.
//!
//! Policies allow names, the kernel knows addresses. [`Names`] (pure) remembers which names an address has and until
//! when; [`Log`] keeps that over a restart of the agent, because the kernel keeps its entries too.

mod cluster;
mod keep;
mod log;
mod service;
mod table;

pub use cluster::Answering;
pub use keep::keep_for_ever;
pub use service::DnsService;

pub use log::{Log, LogError};
pub use table::{Holder, Learnt, MAX_ADDRESSES_OF_A_NAME, MAX_ENTRIES, MAX_OF_A_POD, MAX_TTL, Names, Place};
