//! What the replica tells about itself and about the mesh: logs, flows, metrics.

pub mod collect;
pub mod commits;
pub mod flows;
pub mod histogram;
mod load;
pub mod log;
pub mod xds;

pub use commits::{Commits, Moment};
pub use histogram::Histogram;
pub use mesh_telemetry::{page, process};
pub use xds::XdsMetrics;
