//! The data-plane proxy: mTLS and L7 routing from Envoy's own types.
//!
//! Bytes come in through [`inbound`], are understood and sent on by [`forward`], and leave through [`outbound`]; a
//! connection that only passes goes through [`gateway`]. What to do is decided by pure modules: [`config`] (wire to plain
//! data), [`store`] (which update changes what), [`policy`] (who may), [`route`], [`balance`], [`retry`].

#![forbid(unsafe_code)]

pub mod admin;
pub mod balance;
pub mod config;
pub mod format;
pub mod forward;
pub mod gateway;
pub mod inbound;
pub mod io;
pub mod keys;
pub mod limits;
pub mod outbound;
pub mod overload;
pub mod policy;
mod proxy;
pub mod retry;
pub mod route;
pub mod shared;
pub mod store;
pub mod subscribe;
pub mod telemetry;
pub mod tls;

pub use proxy::{Options, Proxy, StartError};
