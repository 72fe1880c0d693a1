//! Who a workload is: its SPIFFE ID, and the number that the kernel sees for it.

mod labels;
mod spiffe;
mod table;

pub use labels::is_policy_label;
pub use spiffe::{MAX_SPIFFE_ID, MAX_TRUST_DOMAIN, Role, SpiffeError, SpiffeId, TrustDomain};
pub use table::{FIRST_IDENTITY, Full, IdentityKey, IdentityNumber, IdentityTable, MAX_IDENTITY};
