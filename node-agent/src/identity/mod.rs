//! Who calls, and which certificate it gets. Keys of workloads are made here and never leave the node.

mod callers;
mod sds;
mod secrets;
mod session;
mod trust;

pub use callers::{Attested, CallerInfo, Callers, attest};
pub use sds::SdsService;
pub use trust::report_trust_for_ever;

pub(crate) use secrets::RENEWAL_SPREAD;
pub use secrets::{OWN_CERTIFICATE, Secrets, TRUST_BUNDLE};
