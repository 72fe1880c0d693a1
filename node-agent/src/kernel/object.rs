//! The compiled programs, as build.rs left them.

use super::KernelError;

/// Aligned as ELF wants it. Empty when built with SKIP_EBPF=1.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/isthmus-ebpf.o"));

/// Every map whose contents outlive a program: these are pinned.
pub(super) const MAPS: [&str; 36] = [
    "FORMAT",
    "EPOCHS",
    "HOSTS",
    "LINGERING",
    "CIDRS",
    "NODES",
    "ENDPOINTS",
    "CLASSES",
    "PEERS",
    "RULES",
    "CONNTRACK",
    "FRAGMENTS",
    "LOCALS",
    "CONTROL",
    "GUARDED",
    "SERVICES",
    "MAGLEV",
    "SERVED",
    "BACKENDS",
    "BACKEND_EPOCH",
    "AFFINITY",
    "SOURCES",
    "ANSWERERS",
    "NAT",
    "TRANSLATED",
    "CONFIG",
    "ACCELERATED",
    "REVERSE",
    "NETNS",
    "CAPTURED",
    "PROXIES",
    "EVENTS",
    "FLOWS",
    "SUPPRESSED",
    "LOST",
    "METRICS",
];

pub(super) fn embedded() -> Result<&'static [u8], KernelError> {
    if OBJECT.is_empty() { Err(KernelError::NoPrograms) } else { Ok(OBJECT) }
}
