//! How much is under way at once: one pod that asks without end must not silence the others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Of all pods together; each has a socket of its own towards its server.
pub(super) const MAX_UNDER_WAY: usize = 4096;
/// Of one pod.
pub(super) const MAX_OF_A_POD: usize = 256;

#[derive(Default)]
pub(super) struct Slots {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_pod: HashMap<IpAddr, usize>,
}

/// Given back when dropped.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    pod: IpAddr,
}

impl Slots {
    /// `None`: there are enough.
    pub(super) fn take(&self, pod: IpAddr) -> Option<Slot<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_pod.get(&pod).copied().unwrap_or_default();
        if taken.all >= MAX_UNDER_WAY || own >= MAX_OF_A_POD {
            return None;
        }
        taken.all += 1;
        taken.by_pod.insert(pod, own + 1);
        Some(Slot { slots: self, pod })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.by_pod.get_mut(&self.pod) {
            *own -= 1;
            if *own == 0 {
                taken.by_pod.remove(&self.pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize) -> IpAddr {
        IpAddr::from(u32::try_from(number).unwrap().to_be_bytes())
    }

    #[test]
    fn one_pod_does_not_take_what_is_for_all() {
        let slots = Slots::default();
        let mut held: Vec<_> = (0..MAX_OF_A_POD).map(|_| slots.take(pod(1)).unwrap()).collect();
        assert!(slots.take(pod(1)).is_none());
        assert!(slots.take(pod(2)).is_some());
        held.pop();
        assert!(slots.take(pod(1)).is_some());
    }

    #[test]
    fn all_of_them_together_have_a_limit_and_nothing_is_kept_of_pods_that_are_done() {
        let slots = Slots::default();
        let held: Vec<_> = (0..MAX_UNDER_WAY).map(|number| slots.take(pod(number)).unwrap()).collect();
        assert!(slots.take(pod(MAX_UNDER_WAY)).is_none());
        drop(held);
        let taken = slots.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_pod.len()), (0, 0));
    }
}
