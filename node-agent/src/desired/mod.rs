//! From resources and pods to what the kernel is to hold, and from there to the writes. PURE.
//!
//! ## Why no window opens
//!
//! * What a class says of one identity changes with one write ([`ebpf_shared::policy`] has the map), and what it says of
//!   whoever is not named never does: a policy in which that changes gets another class, and each endpoint changes over with
//!   one write. So an endpoint's verdict on an address is that of the old policy or that of the new one, never a
//!   mixture.
//! * An endpoint without a class of its own yet has no entry, and the kernel drops everything of an interface
//!   without an entry.
//! * CIDRs that policies name are identities too, and come and go in the steps of [`plan`](plan()).
//! * The identity of an address changes with one write; where CIDRs nest, the order of the writes is such that every address
//!   has its old or its new identity at each step.
//! * A service whose backends change is replaced with one write as well (see [`crate::maps`]). Services come after all
//!   policy, each by itself: one that does not fit keeps no verdict and no other service from being written.
//! * What programs may still be reading is removed later ([`collect`](collect())), and what does not fit is not begun
//!   ([`Limits`]).
//!
//! Each xDS response carries one type, and is applied by itself, so these steps are the only ones there are. An agent that
//! dies between two writes leaves one of them behind; the next one reads all of it and goes on from there.

mod assign;
mod collect;
mod compute;
mod dictionary;
mod diff;
mod dns;
mod ground;
mod host;
mod mentions;
mod plan;
mod planner;
mod policy;
mod proxy;
mod room;
pub mod service;
mod stages;
mod state;
mod table;

pub use collect::{Garbage, collect};
pub use compute::compute;
pub use dictionary::Dictionary;
pub use diff::{Delta, MapOp};
pub use dns::{asks_proxy, names as dns_names};
pub use plan::{Phase, plan};
pub use planner::{Inputs, Planner};
pub use proxy::{Listens, ProxyEntry};
pub use room::{Full, Limits, ServiceRoom};
pub use service::{Scope, ServedBackend, ServiceEntry, ServiceFrontend};
pub use stages::steps;
pub use state::{Desired, EndpointEntry, NetnsEntry, Pod, PodAddresses};
pub use table::IdentityTable;

#[cfg(test)]
mod tests;
