//! The conntrack map, as the shared verdict uses it.

use ebpf_shared::{ConnEntry, ConnKey, Conntrack};

use crate::maps::CONNTRACK;

pub struct KernelConntrack;

impl Conntrack for KernelConntrack {
    #[inline(always)]
    fn get(&mut self, key: &ConnKey) -> Option<&mut ConnEntry> {
        match CONNTRACK.get_ptr_mut(key) {
            // SAFETY: the kernel keeps the memory valid until the program ends. Other CPUs may write to it at
            // the same time: each field is written whole, and see `ConnEntry` on lost updates. An entry that
            // is evicted and reused under our hands costs one flow a judgement (its stamp decides).
            Some(entry) => Some(unsafe { &mut *entry }),
            None => None,
        }
    }

    #[inline(always)]
    fn insert(&mut self, key: &ConnKey, entry: &ConnEntry) -> bool {
        CONNTRACK.insert(key, entry, 0).is_ok()
    }

    #[inline(always)]
    fn remove(&mut self, key: &ConnKey) {
        // One that was displaced meanwhile is gone as well.
        let _ = CONNTRACK.remove(key);
    }
}
