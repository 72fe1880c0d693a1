//! Runs of slots within one great array. PURE.

use std::collections::{BTreeMap, BTreeSet};

/// Which slots are free.
pub(super) struct Slab {
    /// Start to length. No two touch.
    free: BTreeMap<u32, u32>,
    /// The same by length, so that the shortest run that is long enough is found at once.
    by_length: BTreeSet<(u32, u32)>,
    /// How many are free.
    left: u32,
}

impl Slab {
    /// All of `length` slots are free.
    pub(super) fn new(length: u32) -> Self {
        Self { free: BTreeMap::from([(0, length)]), by_length: BTreeSet::from([(length, 0)]), left: length }
    }

    /// How many are free.
    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// A run of slots that nobody has.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        let (whole, start) = *self.by_length.range((length, 0)..).next()?;
        self.cut(start, whole, start, length);
        Some(start)
    }

    /// A run that is in use already. False if somebody has a part of it.
    pub(super) fn claim(&mut self, start: u32, length: u32) -> bool {
        let Some((&around, &whole)) = self.free.range(..=start).next_back() else { return false };
        let fits = u64::from(start) + u64::from(length) <= u64::from(around) + u64::from(whole);
        if fits {
            self.cut(around, whole, start, length);
        }
        fits
    }

    /// Gives back a run.
    pub(super) fn give(&mut self, start: u32, length: u32) {
        let (mut start, mut length) = (start, length);
        if let Some((&before, &its)) = self.free.range(..start).next_back()
            && before + its == start
        {
            self.forget(before, its);
            (start, length) = (before, length + its);
        }
        if let Some(&its) = self.free.get(&(start + length)) {
            self.forget(start + length, its);
            length += its;
        }
        self.note(start, length);
    }

    /// Takes a part out of a free run.
    fn cut(&mut self, around: u32, whole: u32, start: u32, length: u32) {
        self.forget(around, whole);
        self.note(around, start - around);
        self.note(start + length, around + whole - start - length);
    }

    fn note(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.free.insert(start, length);
            self.by_length.insert((length, start));
            self.left += length;
        }
    }

    fn forget(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
        self.left -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_given_back_is_one_run_again() {
        let mut slab = Slab::new(100);
        let runs: Vec<_> = (0..4).map(|_| slab.take(25).unwrap()).collect();
        assert_eq!(slab.take(1), None);
        for start in [runs[1], runs[3], runs[0], runs[2]] {
            slab.give(start, 25);
        }
        assert_eq!(slab.take(100), Some(0));
    }

    #[test]
    fn a_run_that_is_in_use_is_claimed_once() {
        let mut slab = Slab::new(100);
        assert!(slab.claim(10, 20));
        assert!(!slab.claim(29, 1) && !slab.claim(0, 11) && !slab.claim(90, 11));
        assert!(slab.claim(30, 70) && slab.claim(0, 10));
        assert_eq!(slab.take(1), None);
    }

    proptest! {
        #[test]
        fn no_slot_is_ever_had_by_two(steps in proptest::collection::vec((any::<bool>(), 1_u32..40), 1..200)) {
            let mut slab = Slab::new(500);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (gives, length) in steps {
                if gives && !taken.is_empty() {
                    let (start, length) = taken.swap_remove(length as usize % taken.len());
                    slab.give(start, length);
                } else if let Some(start) = slab.take(length) {
                    prop_assert!(start + length <= 500);
                    for (other, its) in &taken {
                        prop_assert!(start + length <= *other || other + its <= start);
                    }
                    taken.push((start, length));
                }
                let used: u32 = taken.iter().map(|(_, length)| length).sum();
                prop_assert_eq!(slab.free.values().sum::<u32>(), 500 - used);
                prop_assert_eq!(slab.left(), 500 - used);
            }
        }
    }
}
