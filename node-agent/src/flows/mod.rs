//! Flow events of the kernel: named, queued, and sent to the control plane.

mod clock;
mod name;
mod queue;
mod report;

pub use clock::WallClock;
pub use name::{Names, name};
pub use queue::Queue;
pub use report::{collect_for_ever, report_for_ever};
