//! `Watch`: what is there first, then every change, told apart by comparing states.
//!
//! Comparing needs no history, so a watcher is never too slow to go on: it may miss intermediate versions of an
//! object, never its last one.

use std::{collections::BTreeMap, sync::Arc};

use mesh_model::{compile::MeshModel, resource::ObjectKey};
use mesh_store::State;
use xds_proto::isthmus::admin::v1::WatchEvent;

use super::objects::{Filter, encode};

/// What a watcher has seen.
#[derive(Debug)]
pub struct Watcher {
    filter: Filter,
    /// Revision and last form of each object that it knows.
    known: BTreeMap<ObjectKey, (u64, Vec<u8>)>,
    /// Objects that have not changed since are not told at the start.
    from_revision: u64,
    first: bool,
}

impl Watcher {
    /// Starts with nothing seen. With a revision (other than 0), only what changed after it is told at the
    /// start.
    pub fn new(filter: Filter, from_revision: u64) -> Self {
        Self { filter, known: BTreeMap::new(), from_revision, first: true }
    }

    /// The events that lead from what was seen to `state`.
    pub fn advance(&mut self, state: &State, model: Option<&Arc<MeshModel>>) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        let mut seen = BTreeMap::new();
        for (key, object, stored) in self.filter.select(state) {
            let before = self.known.remove(key);
            let bytes = encode(object, stored, state, model.map(AsRef::as_ref));
            let kind = match &before {
                // A changed status is a change, as in Kubernetes.
                Some((_, old)) if *old == bytes => None,
                Some(_) => Some("MODIFIED"),
                None if self.first && self.from_revision > 0 && stored.revision <= self.from_revision => None,
                None => Some("ADDED"),
            };
            if let Some(kind) = kind {
                events.push(event(kind, bytes.clone(), stored.revision));
            }
            seen.insert(key.clone(), (stored.revision, bytes));
        }
        let gone = std::mem::replace(&mut self.known, seen);
        events.extend(gone.into_values().map(|(_, bytes)| event("DELETED", bytes, state.revision)));
        self.first = false;
        events
    }
}

fn event(kind: &str, object: Vec<u8>, revision: u64) -> WatchEvent {
    WatchEvent { r#type: kind.to_owned(), object, revision }
}
