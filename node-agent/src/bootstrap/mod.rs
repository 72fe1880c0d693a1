//! How the node gets its certificate, keeps it and renews it, and how it reaches the control plane.

mod facts;
mod register;
mod renew;
pub(crate) mod state;
mod upstream;

pub use facts::{NodeFactsArgs, report_facts_for_ever};
pub use register::{RegisterError, register};
pub use renew::renew_for_ever;
pub(crate) use renew::unix_now;
pub use state::{NodeState, StateError};
pub(crate) use state::{hex, hex_list};
pub use upstream::{Upstream, UpstreamError};
