//! The last events, for watchers.

use std::{collections::VecDeque, sync::Arc};

use thiserror::Error;

use crate::{Change, Event, apply::json_bytes};

/// The watcher is too far behind: it must list again and watch from the list's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("revision {asked} is compacted: events are kept from revision {oldest} on, list again")]
pub struct Compacted {
    /// The revision after which events were wanted.
    pub asked: u64,
    /// The oldest revision after which all events are known.
    pub oldest: u64,
}

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryStats {
    /// Events.
    pub events: usize,
    /// The oldest revision after which all events are known.
    pub oldest: u64,
}

/// A ring of events in order of revision. Not replicated: each replica remembers what it applied itself.
#[derive(Debug, Clone)]
pub struct History {
    /// Each with its weight.
    events: VecDeque<(Arc<Event>, usize)>,
    /// All events after this revision are here.
    complete_after: u64,
    capacity: usize,
    max_bytes: usize,
    bytes: usize,
}

/// What an event without an object takes, about.
const EVENT_BYTES: usize = 128;

/// What an event takes: objects as JSON, because that is easy to tell and in proportion to what they take here.
fn weight(event: &Event) -> usize {
    match &event.change {
        Change::Put { object, .. } | Change::Deleted { object, .. } => {
            EVENT_BYTES + json_bytes(object.as_ref())
        }
        _ => EVENT_BYTES,
    }
}

impl History {
    /// Knows nothing of what was before `revision`. Keeps so many events of so many bytes together, at most.
    pub fn starting_at(revision: u64, capacity: usize, max_bytes: usize) -> Self {
        Self { events: VecDeque::new(), complete_after: revision, capacity, max_bytes, bytes: 0 }
    }

    /// Bytes of the events that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many events are kept.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// None is kept.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds the events of one command and forgets the oldest ones, whole revisions at a time.
    pub fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let weight = weight(&event);
            self.bytes += weight;
            self.events.push_back((Arc::new(event), weight));
        }
        while self.events.len() > self.capacity || self.bytes > self.max_bytes {
            let Some((dropped, weight)) = self.events.pop_front() else { break };
            self.bytes -= weight;
            self.complete_after = dropped.revision;
            while let Some((_, weight)) =
                self.events.pop_front_if(|(next, _)| next.revision == dropped.revision)
            {
                self.bytes -= weight;
            }
        }
    }

    /// The state was replaced as a whole (a snapshot): watchers from before must list again.
    pub fn reset(&mut self, revision: u64) {
        self.events.clear();
        self.bytes = 0;
        self.complete_after = revision;
    }

    /// How much of it there is.
    pub fn stats(&self) -> HistoryStats {
        HistoryStats { events: self.events.len(), oldest: self.complete_after }
    }

    /// Every event after `revision`, oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are forgotten.
    pub fn after(&self, revision: u64) -> Result<Vec<Arc<Event>>, Compacted> {
        if revision < self.complete_after {
            return Err(Compacted { asked: revision, oldest: self.complete_after });
        }
        let start = self.events.partition_point(|(event, _)| event.revision <= revision);
        Ok(self.events.range(start..).map(|(event, _)| event.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::service;
    use mesh_model::resource::Object;

    fn event(revision: u64) -> Event {
        Event { revision, change: Change::Cluster }
    }

    #[test]
    fn a_watcher_gets_every_event_after_its_revision() {
        let mut history = History::starting_at(3, 10, 10_000);
        history.extend([event(4), event(5), event(5), event(6)]);
        let seen: Vec<_> = history.after(4).expect("known").iter().map(|e| e.revision).collect();
        assert_eq!(seen, [5, 5, 6]);
        assert!(history.after(6).expect("known").is_empty());
        assert!(history.after(99).expect("the future is empty").is_empty());
    }

    #[test]
    fn a_watcher_that_is_too_far_behind_is_told_so() {
        let mut history = History::starting_at(3, 10, 10_000);
        assert_eq!(history.after(2), Err(Compacted { asked: 2, oldest: 3 }));
        history.extend((4..=20).map(event));
        assert_eq!(history.after(9), Err(Compacted { asked: 9, oldest: 10 }));
        assert_eq!(history.after(10).map(|events| events.len()), Ok(10));
    }

    #[test]
    fn a_revision_is_forgotten_as_a_whole() {
        let mut history = History::starting_at(0, 3, 10_000);
        history.extend([event(1), event(1), event(1), event(2)]);
        assert_eq!(history.after(0), Err(Compacted { asked: 0, oldest: 1 }));
        assert_eq!(history.after(1).map(|events| events.len()), Ok(1));
    }

    #[test]
    fn the_bytes_of_the_objects_are_bounded_too() {
        let put = |revision: u64| {
            let mut object = service(&format!("shop/s{revision}"), &[80]);
            object.meta.annotations.insert("note".to_owned(), "x".repeat(900));
            let meta = crate::StoredMeta {
                revision,
                created_revision: revision,
                uid: String::new(),
                created_unix: 0,
            };
            let object = Arc::new(Object::Service(object));
            Event { revision, change: Change::Put { object, meta, created: true } }
        };
        let mut history = History::starting_at(0, 1_000, 10_000);
        for revision in 1..=50 {
            history.extend([put(revision)]);
            assert!(history.bytes() <= 10_000);
        }
        assert!((5..10).contains(&history.len()), "{} events are kept", history.len());
        let Err(Compacted { oldest, .. }) = history.after(10) else { panic!("revision 10 is forgotten") };
        assert_eq!(history.after(oldest).map(|events| events.len()), Ok(history.len()));
        history.reset(60);
        assert_eq!(history.bytes(), 0);
    }

    #[test]
    fn a_snapshot_makes_the_past_unknown() {
        let mut history = History::starting_at(0, 10, 10_000);
        history.extend([event(1)]);
        history.reset(50);
        assert!(history.after(49).is_err());
        assert_eq!(history.after(50).map(|events| events.len()), Ok(0));
    }
}
