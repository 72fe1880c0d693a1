//! The subscriber's half of xDS, shared by node agent, proxy and federation.
//!
//! Two layers:
//! * [`state`] is the incremental (delta) protocol as a pure state machine: messages in, messages out; no
//!   I/O, no clock, no randomness.
//! * [`run`] is the shell around it: it keeps one gRPC stream open, reconnects with jittered exponential
//!   back-off, hands every response to a handler, and ACKs or NACKs by what the handler answers.
//!
//! ```no_run
//! # async fn example() {
//! use xds_client::{Config, Names, Subscription, Update};
//! use xds_proto::isthmus::agent::v1::Service;
//!
//! let node = xds_client::node("agent~n1", "west");
//! let config = Config::new(node, vec![Subscription::wildcard(xds_proto::type_url::<Service>())]);
//! let (_commands, receiver) = tokio::sync::mpsc::channel(16);
//! let connect = || async { xds_client::keepalive("http://127.0.0.1:9000".parse()?).connect().await };
//! let handler = |update: Update| {
//!     for resource in &update.added {
//!         let service = resource.decode::<Service>().map_err(|e| e.to_string())?;
//!         println!("{} has {} ports", service.name, service.ports.len());
//!     }
//!     Ok(())
//! };
//! xds_client::run(config, connect, handler, receiver).await;
//! # }
//! ```

#![forbid(unsafe_code)]

mod backoff;
mod heartbeat;
mod names;
mod run;
pub mod state;
mod transport;
mod update;

pub use backoff::Backoff;
pub use names::{Names, Subscription, WILDCARD};
pub use run::{Config, REVISION_METADATA, SubscribeCommand, run};
pub use state::{DeltaState, ResponseError};
pub use transport::{Status, Transport, keepalive};
pub use update::{DecodeError, Receipt, Resource, Update};

/// A node description with an id and a cluster, which is all that the control plane reads from it.
///
/// The id is only a label: what a client may have is decided by its certificate.
pub fn node(id: impl Into<String>, cluster: impl Into<String>) -> xds_proto::envoy::config::core::v3::Node {
    xds_proto::envoy::config::core::v3::Node { id: id.into(), cluster: cluster.into(), ..Default::default() }
}
