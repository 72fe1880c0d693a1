//! From resources and pods to what the kernel is to hold, and from there to the writes. PURE.
//!
//! ## Why no window opens
//!
//! * A class, once written, is never changed. A changed policy becomes a *new* class number, is written in
//!   full, and each endpoint then changes over with one map write; the old class goes last. So an endpoint's
//!   verdicts are those of the old policy or those of the new one, never a mixture.
//! * An endpoint without a class of its own yet has no entry, and the kernel drops everything of an interface
//!   without an entry.
//! * CIDRs that policies name are identities too, and come and go in the steps of [`plan`].
//! * The identity of an address changes with one write; where CIDRs nest, the order of the writes is such that every address
//!   has its old or its new identity at each step.
//! * A service whose backends change is replaced with one write as well (see [`crate::maps`]).
//!
//! Each xDS response carries one type, and is applied by itself, so these steps are the only ones there are.

mod compute;
mod dictionary;
mod diff;
mod plan;
pub mod service;
mod state;

pub use compute::compute;
pub use dictionary::Dictionary;
pub use diff::{MapOp, diff};
pub use plan::plan;
pub use service::{Scope, ServedBackend, ServiceEntry, ServiceFrontend};
pub use state::{ClassRules, Desired, EndpointEntry, NetnsEntry, Pod, PodAddresses, RuleEntry};

#[cfg(test)]
mod tests;
