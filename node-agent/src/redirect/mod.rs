//! Proxies of this node that policies let pods' traffic through: who they are, and for how long.
//!
//! A proxy registers on the agent's socket and is there while its stream is open. Its sockets are what the kernel hands packets
//! to, so one that has died is handed nothing even before anybody says so; and one that outlives the agent goes
//! on with what it has.

mod cli;
mod service;

pub use cli::{RedirectArgs, run};
pub use service::Registrar;

/// As of a DNS label (RFC 1035, 2.3.4).
pub(crate) const MAX_NAME: usize = 63;

/// Whether a proxy may be called so.
pub(crate) fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
