//! Who a workload is: its SPIFFE ID, and the number that the kernel sees for it.

mod spiffe;

pub use spiffe::{MAX_SPIFFE_ID, MAX_TRUST_DOMAIN, Role, SpiffeError, SpiffeId, TrustDomain};
