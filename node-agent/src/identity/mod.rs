//! Who calls, and which certificate it gets. Keys of workloads are made here and never leave the node.

mod callers;
mod process;
mod sds;
#[cfg(test)]
mod sds_tests;
mod secrets;
mod session;
mod slots;
mod tokens;
mod trust;
mod workload_api;

pub use callers::{Attested, CallerInfo, Callers, attest};
pub use process::cgroup_path;
pub use sds::SdsService;
pub use slots::{Opened, Slots, Standing};
pub use tokens::Tokens;
pub use trust::report_trust_for_ever;
pub use workload_api::{MAX_REQUEST as MAX_SPIFFE_REQUEST, WorkloadApi};

pub(crate) use secrets::RENEWAL_SPREAD;
pub use secrets::{OWN_CERTIFICATE, Secrets, TRUST_BUNDLE};
