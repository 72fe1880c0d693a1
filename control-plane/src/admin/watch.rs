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

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::resource::Object;
    use mesh_store::StoredMeta;
    use serde_json::json;
    use xds_proto::isthmus::admin::v1::ListRequest;

    fn put(state: &mut State, name: &str, port: u16) {
        let value = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"ports": [{"port": port}]},
        });
        let object = Object::parse(&value).unwrap();
        state.revision += 1;
        let revision = state.revision;
        let meta = StoredMeta { revision, created_revision: revision, uid: name.to_owned(), created_unix: 0 };
        state.object_meta.insert(object.key(), Arc::new(meta));
        state.objects.insert(object.key(), Arc::new(object));
    }

    fn told(watcher: &mut Watcher, state: &State) -> Vec<(String, String)> {
        let name = |event: &WatchEvent| {
            let object: serde_json::Value = serde_json::from_slice(&event.object).unwrap();
            object["metadata"]["name"].as_str().unwrap().to_owned()
        };
        watcher.advance(state, None).iter().map(|event| (event.r#type.clone(), name(event))).collect()
    }

    fn watcher(from_revision: u64) -> Watcher {
        let request = ListRequest { kind: "svc".to_owned(), ..Default::default() };
        Watcher::new(Filter::new(&request).unwrap(), from_revision)
    }

    fn pair(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }

    #[test]
    fn what_is_there_comes_first_and_then_each_change_once() {
        let mut state = State::default();
        put(&mut state, "a", 80);
        put(&mut state, "b", 80);
        let mut watcher = watcher(0);
        assert_eq!(told(&mut watcher, &state), [pair("ADDED", "a"), pair("ADDED", "b")]);
        assert_eq!(told(&mut watcher, &state), []);
        put(&mut state, "b", 81);
        let gone = state.objects.keys().next().unwrap().clone();
        state.objects.remove(&gone);
        assert_eq!(told(&mut watcher, &state), [pair("MODIFIED", "b"), pair("DELETED", "a")]);
    }

    #[test]
    fn a_watcher_that_has_listed_is_told_only_of_what_came_after() {
        let mut state = State::default();
        put(&mut state, "a", 80);
        put(&mut state, "b", 80);
        let mut watcher = watcher(1);
        assert_eq!(told(&mut watcher, &state), [pair("ADDED", "b")]);
        put(&mut state, "a", 81);
        assert_eq!(told(&mut watcher, &state), [pair("MODIFIED", "a")]);
    }
}
