//! How much each source may have under way at once, so that one can't use up what is there for all.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Counts by source. Cheap to clone.
#[derive(Debug)]
pub struct Sources<K> {
    most: usize,
    held: Arc<Mutex<Held<K>>>,
}

#[derive(Debug)]
struct Held<K> {
    next: u64,
    by_source: HashMap<K, VecDeque<(u64, Arc<Notify>)>>,
}

/// One thing under way, counted until dropped.
#[derive(Debug)]
pub struct Entered<K: Eq + Hash + Clone> {
    source: K,
    number: u64,
    evicted: Arc<Notify>,
    all: Sources<K>,
}

impl<K> Clone for Sources<K> {
    fn clone(&self) -> Self {
        Self { most: self.most, held: self.held.clone() }
    }
}

impl<K: Eq + Hash + Clone> Sources<K> {
    /// At most so many of each.
    pub fn at_most(most: usize) -> Self {
        Self { most, held: Arc::new(Mutex::new(Held { next: 0, by_source: HashMap::new() })) }
    }

    /// One more of a source; None if it has enough.
    pub fn enter(&self, source: K) -> Option<Entered<K>> {
        let mut held = self.lock();
        if held.by_source.get(&source).is_some_and(|queue| queue.len() >= self.most) {
            return None;
        }
        Some(self.add(&mut held, source))
    }

    /// One more of a source; if it has enough, the oldest of its own is told to make room.
    ///
    /// For what an honest peer is done with in a moment: several of them may share an address (a node and the pods that it
    /// masquerades), and those that only wait must not keep the others out.
    pub fn enter_in_place_of_the_oldest(&self, source: K) -> Entered<K> {
        let mut held = self.lock();
        if let Some(queue) = held.by_source.get_mut(&source)
            && queue.len() >= self.most
            && let Some((_, oldest)) = queue.pop_front()
        {
            oldest.notify_one();
        }
        self.add(&mut held, source)
    }

    fn add(&self, held: &mut Held<K>, source: K) -> Entered<K> {
        held.next += 1;
        let (number, evicted) = (held.next, Arc::new(Notify::new()));
        held.by_source.entry(source.clone()).or_default().push_back((number, evicted.clone()));
        Entered { source, number, evicted, all: self.clone() }
    }
}

impl<K> Sources<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        // The map is whole between any two statements.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Entered<K> {
    /// Resolves when this one is to make room.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + use<K> {
        let evicted = self.evicted.clone();
        async move { evicted.notified().await }
    }
}

impl<K: Eq + Hash + Clone> Drop for Entered<K> {
    fn drop(&mut self) {
        let mut held = self.all.lock();
        if let Some(queue) = held.by_source.get_mut(&self.source) {
            queue.retain(|(number, _)| *number != self.number);
            if queue.is_empty() {
                held.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_source_can_only_use_up_its_own_share() {
        let sources = Sources::at_most(3);
        let mut held: Vec<_> = (0..3).map(|_| sources.enter("greedy").unwrap()).collect();
        assert!(sources.enter("greedy").is_none());
        assert!(sources.enter("modest").is_some());
        held.pop();
        assert!(sources.enter("greedy").is_some());
        drop(held);
        assert!(sources.lock().by_source.is_empty(), "nothing is left behind");
    }

    #[test]
    fn the_oldest_of_the_same_source_makes_room_for_the_newest() {
        let sources = Sources::at_most(2);
        let (first, second) = (sources.enter(1).unwrap(), sources.enter(1).unwrap());
        let other = sources.enter(2).unwrap();
        let third = sources.enter_in_place_of_the_oldest(1);
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none() && other.evicted().now_or_never().is_none());
        drop(first);
        assert!(sources.enter(1).is_none(), "second and third are under way");
        drop(third);
        assert!(sources.enter(1).is_some());
    }
}
