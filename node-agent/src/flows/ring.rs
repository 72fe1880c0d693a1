//! The last flows of this node, for those who ask and those who follow.
//!
//! Everything has a number, in the order in which it came. A reader remembers the number that it wants next; what has been
//! overwritten before it came there is what it has lost. So a slow reader costs nothing but its own flows.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use xds_proto::isthmus::bootstrap::v1::Flow;

use super::Record;

/// Entries that are kept: 1.8 MB.
pub const KEPT: usize = 16_384;

/// What is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A flow.
    Flow(Record),
    /// One that a proxy told of, with its names.
    Told(Arc<Flow>),
    /// The kernel could not tell so many here.
    Lost(u64),
}

/// A bounded ring. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ring {
    inner: Arc<Mutex<Inner>>,
    next: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Inner {
    entries: VecDeque<Entry>,
    /// Number of the first of `entries`.
    first: u64,
    seen: u64,
    told: u64,
    /// Flows of the last seconds, the youngest last.
    rate: VecDeque<(u64, u64)>,
}

/// Seconds over which the rate is taken.
const RATE_SECONDS: usize = 60;

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Level {
    /// Entries that are kept.
    pub kept: u64,
    /// Packets that were told of since the agent started, one by one or by counts.
    pub seen: u64,
    /// Flows per second, over the last minute.
    pub rate: f64,
}

impl Default for Ring {
    fn default() -> Self {
        let inner = Inner { entries: VecDeque::new(), first: 0, seen: 0, told: 0, rate: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(inner)), next: Arc::new(watch::Sender::new(0)) }
    }
}

impl Ring {
    /// Adds an entry; the oldest goes when there is no room.
    pub fn push(&self, entry: Entry) {
        let mut inner = self.lock();
        if inner.entries.len() >= KEPT {
            inner.entries.pop_front();
            inner.first += 1;
        }
        match &entry {
            Entry::Flow(record) => {
                inner.seen += record.count.max(1);
                inner.told += 1;
            }
            Entry::Told(_) => {
                inner.seen += 1;
                inner.told += 1;
            }
            Entry::Lost(_) => {}
        }
        inner.entries.push_back(entry);
        let next = inner.first + inner.entries.len() as u64;
        drop(inner);
        self.next.send_replace(next);
    }

    /// Notes a second's end, for the rate.
    pub fn tick(&self, second: u64) {
        let mut inner = self.lock();
        let told = inner.told;
        inner.rate.push_back((second, told));
        while inner.rate.len() > RATE_SECONDS + 1 {
            inner.rate.pop_front();
        }
    }

    /// Everything that is kept, and the number that comes after it.
    pub fn all(&self) -> (Vec<Entry>, u64) {
        let inner = self.lock();
        (inner.entries.iter().cloned().collect(), inner.first + inner.entries.len() as u64)
    }

    /// Up to so many entries from a number on, how many were overwritten before them, and the number after them.
    pub fn from(&self, number: u64, most: usize) -> (Vec<Entry>, u64, u64) {
        let inner = self.lock();
        let lost = inner.first.saturating_sub(number);
        let start = number.max(inner.first);
        let skip = usize::try_from(start - inner.first).unwrap_or(usize::MAX);
        let entries: Vec<Entry> = inner.entries.iter().skip(skip).take(most).cloned().collect();
        let after = start + entries.len() as u64;
        (entries, lost, after)
    }

    /// Changes whenever something is added: the number that comes next.
    pub fn next(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// How full it is.
    pub fn level(&self) -> Level {
        let inner = self.lock();
        let rate = match (inner.rate.front(), inner.rate.back()) {
            (Some((from, before)), Some((to, now))) if to > from => {
                (now - before) as f64 / (to - from) as f64
            }
            _ => 0.0,
        };
        Level { kept: inner.entries.len() as u64, seen: inner.seen, rate }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_shared::FlowEvent;

    fn flow(port: u16, count: u64) -> Entry {
        let event = FlowEvent { dst_port: port, ..FlowEvent::default() };
        Entry::Flow(Record { unix_nanos: 1, count, event })
    }

    #[test]
    fn a_reader_that_comes_too_late_is_told_how_many_are_gone() {
        let ring = Ring::default();
        let more = u64::try_from(KEPT).unwrap() + 10;
        for port in 0..more {
            ring.push(flow(u16::try_from(port % 60_000).unwrap(), 0));
        }
        let (entries, lost, after) = ring.from(4, 3);
        assert_eq!((entries.len(), lost, after), (3, 6, 13));
        assert_eq!(entries[0], flow(10, 0));
        let (entries, lost, after) = ring.from(more, 3);
        assert_eq!((entries.len(), lost, after), (0, 0, more));
        assert_eq!(ring.all().0.len(), KEPT);
        assert_eq!(*ring.next().borrow(), more);
    }

    #[test]
    fn counts_are_seen_as_so_many() {
        let ring = Ring::default();
        ring.push(flow(80, 0));
        ring.push(flow(80, 41));
        ring.push(Entry::Lost(7));
        assert_eq!(ring.level().seen, 42);
        ring.tick(10);
        ring.push(flow(80, 0));
        ring.tick(12);
        assert_eq!(ring.level(), Level { kept: 4, seen: 43, rate: 0.5 });
    }
}
