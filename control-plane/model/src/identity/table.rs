//! The dictionary of identities: one number per (trust domain, namespace, service account, labels).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TrustDomain;
use crate::resource::Labels;

/// A 24-bit number that stands for an [`IdentityKey`] in the kernel of this cluster's nodes.
pub type IdentityNumber = u32;

/// Numbers below this are reserved: 0 is "unknown", 1 host, 2 world, 3 remote node, 4 health.
pub const FIRST_IDENTITY: IdentityNumber = 256;
/// Numbers are 24 bits wide.
pub const MAX_IDENTITY: IdentityNumber = (1 << 24) - 1;

/// What makes two workloads the same to policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct IdentityKey {
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub service_account: String,
    /// The policy-relevant labels of the workload.
    pub labels: Labels,
}

/// Allocated by `apply`, so that no two replicas differ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdentityTable {
    #[allow(missing_docs)]
    pub numbers: BTreeMap<IdentityNumber, IdentityKey>,
    /// The next number to try; wraps at [`MAX_IDENTITY`].
    pub next: IdentityNumber,
}
