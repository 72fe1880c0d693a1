//! The memory of an array map (`BPF_F_MMAPABLE`): thousands of slots are then written without a system call.
//!
//! What is mapped counts as this process's memory, touched or not. So of a great map there is one window at a time: tables lie
//! together, and whoever writes one stays in it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{KernelError, sys};

/// Words of a window, whole pages: 256 KiB.
const WINDOW: u32 = 1 << 16;

/// A pinned array, as words of 32 bits.
pub(super) struct Mapped {
    name: &'static str,
    pin: PathBuf,
    map: OwnedFd,
    words: u32,
    protection: libc::c_int,
    window: Mutex<Window>,
}

/// Words that are mapped.
struct Window {
    base: NonNull<AtomicU32>,
    first: u32,
    words: u32,
}

// SAFETY: the mapping belongs to this value alone, and is only accessed by atomic words.
unsafe impl Send for Window {}

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
        let error = |source| KernelError::path("memory of map", pin, source);
        let map = sys::open_pinned(pin).map_err(error)?;
        let window = Window::of(&map, 0, words, protection).map_err(error)?;
        Ok(Self { name, pin: pin.to_owned(), map, words, protection, window: Mutex::new(window) })
    }

    /// How many there are.
    pub(super) fn words(&self) -> u32 {
        self.words
    }

    /// A word; beyond the end: 0.
    pub(super) fn get(&self, at: u32) -> Result<u32, KernelError> {
        if at >= self.words {
            return Ok(0);
        }
        self.with(at, |word| word.load(Ordering::Relaxed))
    }

    /// Writes a word. What is written after by a system call is seen after by the programs.
    pub(super) fn set(&self, at: u32, value: u32) -> Result<(), KernelError> {
        if at >= self.words {
            return Err(KernelError::Exhausted { what: self.name });
        }
        self.with(at, |word| word.store(value, Ordering::Release))
    }

    fn with<T>(&self, at: u32, work: impl FnOnce(&AtomicU32) -> T) -> Result<T, KernelError> {
        let mut window = lock(&self.window);
        if window.word(at).is_none() {
            let moved = Window::of(&self.map, at, self.words, self.protection);
            *window = moved.map_err(|source| KernelError::path("memory of map", &self.pin, source))?;
        }
        window.word(at).map(work).ok_or(KernelError::Exhausted { what: self.name })
    }
}

/// A pinned array of numbers of 64 bits that are only ever added to, small enough to be mapped whole.
pub(super) struct Counters {
    window: Window,
    /// What each is to be, as far as only this process adds to it.
    noted: Box<[AtomicU64]>,
}

// SAFETY: nothing but atomic numbers, and the mapping never changes.
unsafe impl Sync for Counters {}

impl Counters {
    /// Maps an array of so many numbers.
    pub(super) fn open(pin: &Path, numbers: u32) -> Result<Self, KernelError> {
        Self::open_for(pin, numbers, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// The same to be read only: whoever adds to it is ended.
    pub(super) fn look(pin: &Path, numbers: u32) -> Result<Self, KernelError> {
        Self::open_for(pin, numbers, libc::PROT_READ)
    }

    fn open_for(pin: &Path, numbers: u32, protection: libc::c_int) -> Result<Self, KernelError> {
        let error = |source| KernelError::path("memory of map", pin, source);
        let map = sys::open_pinned(pin).map_err(error)?;
        let window = Window::of(&map, 0, 2 * numbers, protection).map_err(error)?;
        let mut counters = Self { window, noted: Box::default() };
        let now = |at| counters.number(at).map_or(0, |number| number.load(Ordering::SeqCst));
        counters.noted = (0..numbers).map(|at| AtomicU64::new(now(at))).collect();
        Ok(counters)
    }

    /// What each was when this was opened, and what was added to it since by [`Self::increment`].
    pub(super) fn noted(&self) -> Vec<u64> {
        self.noted.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    /// Adds one; beyond the end there is nothing to add to.
    pub(super) fn increment(&self, at: u32) {
        if let Some(number) = self.number(at) {
            number.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(noted) = self.noted.get(at as usize) {
            noted.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn number(&self, at: u32) -> Option<&AtomicU64> {
        let is_there = at < self.window.words / 2;
        // SAFETY: within the mapping, which lives as long as `self`; aligned, as mappings begin at a page.
        is_there.then(|| unsafe { self.window.base.cast::<AtomicU64>().add(at as usize).as_ref() })
    }
}

impl Window {
    /// The one in which a word is, of a map of so many.
    fn of(map: &OwnedFd, at: u32, words: u32, protection: libc::c_int) -> io::Result<Self> {
        let first = at / WINDOW * WINDOW;
        let words = words.saturating_sub(first).min(WINDOW);
        // SAFETY: a new mapping; the kernel refuses what is beyond the map.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words as usize * size_of::<u32>(),
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                libc::off_t::from(first) * size_of::<u32>() as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { base, first, words })
    }

    fn word(&self, at: u32) -> Option<&AtomicU32> {
        let place = at.checked_sub(self.first).filter(|place| *place < self.words)?;
        // SAFETY: within the mapping, which lives as long as `self`; aligned, as mappings begin at a page.
        Some(unsafe { self.base.add(place as usize).as_ref() })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words as usize * size_of::<u32>()) };
    }
}

fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}
