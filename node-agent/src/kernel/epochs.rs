//! The counters that tell conntrack entries whether what they were judged by has changed: see [`ebpf_shared::epochs`].

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Map, MapData};
use ebpf_shared::{Addr, epochs};

use super::KernelError;

/// The array, in this process's memory: raising one is no system call.
pub(super) struct Epochs {
    first: NonNull<AtomicU64>,
    /// Programs are loaded with its descriptor.
    _map: MapData,
}

const BYTES: usize = epochs::COUNT as usize * size_of::<u64>();

// SAFETY: nothing but atomic numbers, in memory that is shared with the kernel anyway.
unsafe impl Send for Epochs {}
// SAFETY: as above.
unsafe impl Sync for Epochs {}

impl Epochs {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let Map::Array(data) = map else {
            return Err(KernelError::Missing { what: "map", name: "EPOCHS" });
        };
        // SAFETY: a new mapping at an address that the kernel chooses, of a descriptor that is open.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<AtomicU64>()) {
            Some(first) if address != libc::MAP_FAILED => Ok(Self { first, _map: data }),
            _ => Err(KernelError::Epochs { source: io::Error::last_os_error() }),
        }
    }

    /// Has every established flow judged again on its next packet. Like the others, to be called *after* the write.
    pub(super) fn raise_all(&self) {
        self.raise(epochs::GLOBAL);
    }

    /// Those of a class.
    pub(super) fn raise_class(&self, class: u32) {
        self.raise(epochs::of_class(class));
    }

    /// Those with a peer of this address, and of few others.
    pub(super) fn raise_peer(&self, addr: &Addr) {
        self.raise(epochs::of_peer(addr));
    }

    fn raise(&self, at: u32) {
        debug_assert!(at < epochs::COUNT);
        // SAFETY: the mapping has `COUNT` numbers, and lives as long as `self`. The functions of `epochs` give no others.
        let epoch = unsafe { self.first.add(at as usize).as_ref() };
        epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nobody else has it.
        unsafe { libc::munmap(self.first.as_ptr().cast(), BYTES) };
    }
}
