//! The way out: clusters, their endpoints, and connections to them.

mod behalf;
mod body;
mod breakers;
mod call;
mod client_body;
mod cluster;
mod dial;
mod health;
mod host;
mod host_set;
mod kernel;
mod lease;
mod limit;
mod originals;
mod pool;
mod replay;
mod task;
mod timer;

pub use behalf::{Behalf, Source, behalf, on_behalf};
pub use body::UpstreamBody;
pub use breakers::{Breaker, Breakers};
pub use call::{CallError, Called, GrpcCluster, call, fetch};
pub use client_body::{ClientBody, ReadError};
pub use cluster::{Ask, UpstreamCluster};
pub use dial::{ConnectError, ConnectFailure, dial};
pub use host::Host;
pub use lease::{Lease, SendError};
pub use limit::{Limit, Permit};
pub use pool::{Want, acquire, acquire_as};
pub use replay::ReplayHandle;
pub use timer::{Deadline, IdleTimer};

/// The error of bodies: whatever a connection says.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
