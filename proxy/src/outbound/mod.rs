//! The way out: clusters, their endpoints, and connections to them.

mod behalf;
mod body;
mod call;
mod client_body;
mod cluster;
mod dial;
mod host;
mod lease;
mod limit;
mod originals;
mod pool;
mod replay;
mod timer;

pub use behalf::{Behalf, Source, behalf, on_behalf};
pub use body::UpstreamBody;
pub use call::{CallError, Called, GrpcCluster, call, fetch};
pub use client_body::{ClientBody, ReadError};
pub use cluster::UpstreamCluster;
pub use dial::{ConnectError, ConnectFailure, dial};
pub use host::Host;
pub use lease::{Lease, SendError};
pub use limit::{Limit, Permit};
pub use pool::{Want, acquire};
pub use replay::ReplayHandle;
pub use timer::{Deadline, IdleTimer};

/// The error of bodies: whatever a connection says.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
