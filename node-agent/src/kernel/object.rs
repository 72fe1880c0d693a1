//! The compiled programs, as build.rs left them.

use super::KernelError;

/// Aligned as ELF wants it. Empty when built with SKIP_EBPF=1.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/isthmus-ebpf.o"));

/// Every map whose contents outlive a program: these are pinned.
pub(super) const MAPS: [&str; 21] = [
    "FORMAT",
    "GENERATION",
    "HOSTS",
    "CIDRS",
    "ENDPOINTS",
    "CLASSES",
    "POLICY",
    "CONNTRACK",
    "FRAGMENTS",
    "SERVICES",
    "MAGLEV",
    "SERVED",
    "BACKENDS",
    "AFFINITY",
    "SOURCES",
    "REVERSE",
    "NETNS",
    "CAPTURED",
    "EVENTS",
    "LOST",
    "METRICS",
];

pub(super) fn embedded() -> Result<&'static [u8], KernelError> {
    if OBJECT.is_empty() { Err(KernelError::NoPrograms) } else { Ok(OBJECT) }
}
