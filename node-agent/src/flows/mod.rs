//! Flow events of the kernel: kept as numbers for those who ask here, named and queued for the control plane.

mod clock;
mod counts;
mod dns;
mod hubble;
mod name;
mod namer;
mod peers;
mod queue;
mod record;
mod report;
mod ring;

pub use clock::{WallClock, monotonic_nanos};
pub use counts::{Counts, Look};
pub use dns::{Parties, asked};
pub use hubble::{NodeFlows, serve_tls};
pub use name::Names;
pub use namer::Namer;
pub use peers::Peers;
pub use queue::Queue;
pub use record::Record;
pub use report::{Collector, report_for_ever};
pub use ring::{Entry, KEPT, Ring};
