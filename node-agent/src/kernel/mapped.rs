//! The memory of an array map (`BPF_F_MMAPABLE`): thousands of slots are then written without a system call.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{KernelError, sys};

/// A pinned array, as words of 32 bits.
pub(super) struct Mapped {
    name: &'static str,
    base: NonNull<AtomicU32>,
    words: u32,
}

// SAFETY: the mapping belongs to this value alone, and is only accessed by atomic words.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an array of so many words.
    pub(super) fn open(name: &'static str, pin: &Path, words: u32) -> Result<Self, KernelError> {
        Self::open_for(name, pin, words, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// The same to be read only: whoever writes to it is ended.
    pub(super) fn look(name: &'static str, pin: &Path, words: u32) -> Result<Self, KernelError> {
        Self::open_for(name, pin, words, libc::PROT_READ)
    }

    fn open_for(
        name: &'static str,
        pin: &Path,
        words: u32,
        protection: libc::c_int,
    ) -> Result<Self, KernelError> {
        let map = || {
            let file = sys::open_pinned(pin)?;
            // SAFETY: a new mapping; the kernel refuses a length beyond that of the map.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    words as usize * size_of::<u32>(),
                    protection,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        let base = map().map_err(|source| KernelError::path("memory of map", pin, source))?;
        Ok(Self { name, base, words })
    }

    /// A word; beyond the end: 0.
    pub(super) fn get(&self, at: u32) -> u32 {
        self.word(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Writes a word. What is written after by a system call is seen after by the programs.
    pub(super) fn set(&self, at: u32, value: u32) -> Result<(), KernelError> {
        let word = self.word(at).ok_or(KernelError::Exhausted { what: self.name })?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Adds one to a number of 64 bits, of which there are half as many as words; beyond the end there is none.
    pub(super) fn increment(&self, at: u32) {
        if at < self.words / 2 {
            // SAFETY: within the mapping, which lives as long as `self`; aligned, as mappings begin at a page. A map of such
            // numbers is not read by words.
            let number = unsafe { self.base.cast::<AtomicU64>().add(at as usize).as_ref() };
            number.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn word(&self, at: u32) -> Option<&AtomicU32> {
        // SAFETY: within the mapping, which lives as long as `self`; aligned, as mappings begin at a page.
        (at < self.words).then(|| unsafe { self.base.add(at as usize).as_ref() })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words as usize * size_of::<u32>()) };
    }
}
