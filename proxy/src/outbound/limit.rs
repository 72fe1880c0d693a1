//! A bound on how many of something there are at a time.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// So many and no more.
#[derive(Debug)]
pub struct Limit {
    used: AtomicU32,
    max: u32,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Limit>);

impl Limit {
    /// None in use.
    pub fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { used: AtomicU32::new(0), max })
    }

    /// One, if there is one left.
    pub fn try_take(self: &Arc<Self>) -> Option<Permit> {
        self.try_take_of(self.max)
    }

    /// One, if fewer than `max` are in use, whatever the limit itself says.
    pub fn try_take_of(self: &Arc<Self>, max: u32) -> Option<Permit> {
        if self.used.fetch_add(1, Ordering::AcqRel) < max.min(self.max) {
            return Some(Permit(self.clone()));
        }
        self.used.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// The limit.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// One, even if that is too many.
    pub fn take(self: &Arc<Self>) -> Permit {
        self.used.fetch_add(1, Ordering::AcqRel);
        Permit(self.clone())
    }

    /// How many are in use.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_that_is_dropped_can_be_taken_again() {
        let limit = Limit::new(1);
        let permit = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        let forced = limit.take();
        drop(permit);
        assert!(limit.try_take().is_none());
        drop(forced);
        assert!(limit.try_take().is_some());
        assert_eq!(limit.used(), 0);
    }
}
