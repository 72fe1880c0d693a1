//! Names of the cluster: what services are called, by the Kubernetes DNS specification (version 1.1.0 of its schema), and by
//! KEP-1645 in a set of clusters. PURE: from what the agent tells of services to an answer.
//!
//! | name | answer |
//! | --- | --- |
//! | `<service>.<namespace>.svc.<domain>` | its virtual IPs; of a headless one the addresses of its ready endpoints |
//! | `<hostname>.<service>.<namespace>.svc.<domain>` | an endpoint of a headless one. Without a hostname its address is one, with `-` for `.` and `:` |
//! | `_<port>._<protocol>.<service>.<namespace>.svc.<domain>` | SRV: a port that has a name |
//! | `<address>.<namespace>.pod.<domain>` | the address, written with `-` |
//! | `dns-version.<domain>` | TXT: the schema's version |
//! | `….in-addr.arpa`, `….ip6.arpa` | PTR: the names of a virtual IP, or of an endpoint |
//!
//! `<domain>` is the cluster's for services of its own, the set's for those that are exported or imported, and the mesh's for
//! all.

mod answer;
mod lookup;
mod zone;

pub use answer::{Reply, answer, failure};
pub use zone::{Domains, NamedEndpoint, NamedPort, NamedService, Zone};

/// Seconds that answers hold, also those that there is nothing.
pub const TTL: u32 = 5;
/// Addresses of one answer: a client uses a few of them.
pub const MAX_ADDRESSES: usize = 1_000;
/// The domain of KEP-1645.
pub const SET_DOMAIN: &str = "clusterset.local";
