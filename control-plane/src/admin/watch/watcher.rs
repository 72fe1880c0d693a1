//! One watcher: what it is told of each event. Pure.
//!
//! What an event costs does not depend on the size of the store: an object is looked at when it changes. Its *status*
//! may change without it (a service's endpoints, with a workload); such changes are looked for by kind and namespace,
//! in those alone where something happened that they depend on, and as often as the shell asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use mesh_model::{
    compile::{MeshModel, ROOT_NAMESPACE},
    resource::{Kind, Object, ObjectKey},
};
use mesh_store::{Change, Event, State, StoredMeta};
use xds_proto::isthmus::admin::v1::WatchEvent;

use crate::admin::objects::{Filter, encode};

/// What a watcher has seen.
#[derive(Debug)]
pub struct Watcher {
    filter: Filter,
    /// Hash of the last form of each object that the watcher was told of.
    known: BTreeMap<ObjectKey, u64>,
    /// Kinds and namespaces (empty: all) of which a status may have changed.
    dirty: BTreeSet<(Kind, String)>,
}

impl Watcher {
    /// Has seen nothing.
    pub fn new(filter: Filter) -> Self {
        Self { filter, known: BTreeMap::new(), dirty: BTreeSet::new() }
    }

    /// What is there. Of objects that have not changed since `seen` nothing is told: the watcher has them from a list
    /// or an earlier watch; with zero it has nothing.
    pub fn start(&mut self, seen: u64, state: &State, model: Option<&MeshModel>) -> Vec<WatchEvent> {
        let mut told = Vec::new();
        for (key, object, stored) in self.filter.select(state) {
            let bytes = encode(object, stored, state, model);
            self.known.insert(key.clone(), hash(&bytes));
            if stored.revision > seen {
                let kind = if stored.created_revision > seen { "ADDED" } else { "MODIFIED" };
                told.push(event(kind, bytes, stored.revision));
            }
        }
        told
    }

    /// Events, in their order, that have led to a state.
    pub fn on_event(
        &mut self,
        event: &Event,
        state: &State,
        model: Option<&MeshModel>,
    ) -> Option<WatchEvent> {
        self.dirty.extend(
            dependents(&event.change)
                .into_iter()
                .filter(|(kind, namespace)| self.filter.wants(*kind, namespace)),
        );
        match &event.change {
            Change::Put { object, meta, .. } => self.put(object, meta, event.revision, state, model),
            Change::Deleted { object, meta } => {
                self.known.remove(&object.key())?;
                Some(deleted(object, meta, event.revision))
            }
            _ => None,
        }
    }

    /// Whether [`Watcher::refresh`] has anything to look at.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Objects whose status has changed since they were told.
    pub fn refresh(&mut self, state: &State, model: Option<&MeshModel>) -> Vec<WatchEvent> {
        let mut told = Vec::new();
        for (kind, namespace) in std::mem::take(&mut self.dirty) {
            for (key, object, stored) in self.filter.select_within(state, kind, &namespace) {
                let bytes = encode(object, stored, state, model);
                let new = hash(&bytes);
                // What is not known yet is told by its own event.
                if let Some(old) = self.known.get_mut(key)
                    && *old != new
                {
                    *old = new;
                    told.push(event("MODIFIED", bytes, stored.revision));
                }
            }
        }
        told
    }

    fn put(
        &mut self,
        object: &Object,
        meta: &StoredMeta,
        revision: u64,
        state: &State,
        model: Option<&MeshModel>,
    ) -> Option<WatchEvent> {
        let key = object.key();
        if !self.filter.matches(object) {
            // It has left the selector: to this watcher it is gone.
            return self.known.remove(&key).map(|_| deleted(object, meta, revision));
        }
        let bytes = encode(object, meta, state, model);
        let new = hash(&bytes);
        let kind = match self.known.insert(key, new) {
            Some(old) if old == new => return None,
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        Some(event(kind, bytes, revision))
    }
}

/// Whose status may change with a change, by kind and namespace (empty: all).
fn dependents(change: &Change) -> Vec<(Kind, String)> {
    let of =
        |kinds: &[Kind], namespace: &str| kinds.iter().map(|kind| (*kind, namespace.to_owned())).collect();
    match change {
        Change::Put { object, .. } | Change::Deleted { object, .. } => {
            let key = object.key();
            let namespace = key.name.namespace.as_str();
            match key.kind {
                Kind::Workload => {
                    let here = [Kind::Service, Kind::NetworkPolicy, Kind::CiliumNetworkPolicy, Kind::Sidecar];
                    let of_cluster =
                        of(&[Kind::CiliumClusterwideNetworkPolicy, Kind::ClusterNetworkPolicy], "");
                    [of(&here, namespace), of(&[Kind::Sidecar], ROOT_NAMESPACE), of_cluster].concat()
                }
                Kind::NetworkPolicy | Kind::CiliumNetworkPolicy => of(&[Kind::Workload], namespace),
                Kind::CiliumClusterwideNetworkPolicy | Kind::ClusterNetworkPolicy => {
                    of(&[Kind::Workload], "")
                }
                Kind::EndpointSlice | Kind::ServiceExport => of(&[Kind::Service], namespace),
                // Routes of any namespace may refer to a service.
                Kind::Service => [of(&[Kind::ServiceExport], namespace), of(&[Kind::HttpRoute], "")].concat(),
                // Of a namespace, or of the root where it leaves all to the root's.
                Kind::Sidecar if namespace == ROOT_NAMESPACE => of(&[Kind::Sidecar, Kind::Workload], ""),
                Kind::Sidecar => {
                    let here = of(&[Kind::Sidecar, Kind::Workload], namespace);
                    [here, of(&[Kind::Sidecar], ROOT_NAMESPACE)].concat()
                }
                // Policies of any namespace may select it.
                Kind::Namespace => {
                    let policies = Kind::ALL.into_iter().filter(|kind| kind.is_policy());
                    of(&policies.chain([Kind::Workload]).collect::<Vec<_>>(), "")
                }
                Kind::HttpRoute => Vec::new(),
            }
        }
        Change::Binding(workload) => of(&[Kind::Workload, Kind::Service], &workload.namespace),
        Change::Allocation(service) | Change::Import { service, .. } => {
            of(&[Kind::Service], &service.namespace)
        }
        Change::Peer(_) => of(&[Kind::Service], ""),
        Change::Cluster
        | Change::Node(_)
        | Change::Token(_)
        | Change::Administrator(_)
        | Change::Replica(_) => Vec::new(),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn deleted(object: &Object, meta: &StoredMeta, revision: u64) -> WatchEvent {
    let bytes = crate::admin::render::object(object, meta, None).to_string().into_bytes();
    event("DELETED", bytes, revision)
}

fn event(kind: &str, object: Vec<u8>, revision: u64) -> WatchEvent {
    WatchEvent { r#type: kind.to_owned(), object, revision }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_model::{identity::TrustDomain, records::ClusterInfo};
    use serde_json::json;
    use xds_proto::isthmus::admin::v1::ListRequest;

    use super::*;

    #[derive(Default)]
    struct Store {
        state: State,
        events: Vec<Event>,
    }

    impl Store {
        fn put(&mut self, kind: &str, name: &str, app: &str, port: u16) {
            let (api, spec) = match kind {
                "Service" => ("v1", json!({"ports": [{"port": port}], "selector": {"app": "pay"}})),
                _ => ("networking.k8s.io/v1", json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
            };
            let (kind, metadata) = match kind {
                "Workload" => {
                    ("Workload", json!({"name": name, "namespace": "shop", "labels": {"app": app}}))
                }
                kind => (kind, json!({"name": name, "namespace": "shop", "labels": {"app": app}})),
            };
            let value = match kind {
                "Workload" => json!({"apiVersion": "isthmus.io/v1", "kind": kind, "metadata": metadata,
                    "spec": {"serviceAccount": "pay"}}),
                _ => json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}),
            };
            let object = Object::parse(&value).unwrap();
            self.state.revision += 1;
            let revision = self.state.revision;
            let before = self.state.object_meta.get(&object.key());
            let created_revision = before.map_or(revision, |meta| meta.created_revision);
            let created = before.is_none();
            let meta = StoredMeta { revision, created_revision, uid: name.to_owned(), created_unix: 0 };
            self.state.object_meta.insert(object.key(), Arc::new(meta.clone()));
            self.state.objects.insert(object.key(), Arc::new(object.clone()));
            let change = Change::Put { object: Arc::new(object), meta, created };
            self.events.push(Event { revision, change });
        }

        fn delete(&mut self, name: &str) {
            let key = self.state.objects.keys().find(|key| key.name.name == name).unwrap().clone();
            let object = self.state.objects.remove(&key).unwrap();
            let meta = self.state.object_meta.remove(&key).unwrap();
            self.state.revision += 1;
            let change = Change::Deleted { object, meta: meta.as_ref().clone() };
            self.events.push(Event { revision: self.state.revision, change });
        }

        /// What a watcher is told of the events since the last call.
        fn told(&mut self, watcher: &mut Watcher) -> Vec<(String, String)> {
            let events = std::mem::take(&mut self.events);
            let told: Vec<_> =
                events.iter().filter_map(|event| watcher.on_event(event, &self.state, None)).collect();
            names(&told)
        }
    }

    fn names(events: &[WatchEvent]) -> Vec<(String, String)> {
        let name = |event: &WatchEvent| {
            let object: serde_json::Value = serde_json::from_slice(&event.object).unwrap();
            object["metadata"]["name"].as_str().unwrap().to_owned()
        };
        events.iter().map(|event| (event.r#type.clone(), name(event))).collect()
    }

    fn watcher(kind: &str, selector: &str) -> Watcher {
        let request =
            ListRequest { kind: kind.to_owned(), label_selector: selector.to_owned(), ..Default::default() };
        Watcher::new(Filter::new(&request).unwrap())
    }

    /// Of a cluster without anything: the status of a policy needs no more.
    fn model() -> MeshModel {
        MeshModel::empty(Arc::new(ClusterInfo {
            name: "west".to_owned(),
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.2.0.0/16".parse().unwrap(),
            roots: Vec::new(),
            trust: Default::default(),
        }))
    }

    fn pair(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }

    #[test]
    fn what_is_there_comes_first_and_then_each_change_once() {
        let mut store = Store::default();
        store.put("Service", "a", "x", 80);
        store.put("Service", "b", "x", 80);
        let mut watcher = watcher("svc", "");
        let first = watcher.start(0, &store.state, None);
        assert_eq!(names(&first), [pair("ADDED", "a"), pair("ADDED", "b")]);
        store.events.clear();
        store.put("Service", "b", "x", 81);
        store.put("Service", "b", "x", 82);
        store.delete("a");
        assert_eq!(
            store.told(&mut watcher),
            [pair("MODIFIED", "b"), pair("MODIFIED", "b"), pair("DELETED", "a")]
        );
        assert_eq!(store.told(&mut watcher), []);
    }

    #[test]
    fn a_watcher_that_has_listed_is_told_only_of_what_came_after() {
        let mut store = Store::default();
        store.put("Service", "a", "x", 80);
        store.put("Service", "b", "x", 80);
        let mut watcher = watcher("svc", "");
        assert_eq!(names(&watcher.start(1, &store.state, None)), [pair("ADDED", "b")]);
        store.events.clear();
        store.put("Service", "a", "x", 81);
        assert_eq!(store.told(&mut watcher), [pair("MODIFIED", "a")]);
        store.put("NetworkPolicy", "other", "x", 0);
        assert_eq!(store.told(&mut watcher), [], "another kind");
    }

    #[test]
    fn an_object_that_leaves_the_selector_is_gone_and_one_that_enters_is_new() {
        let mut store = Store::default();
        store.put("Service", "a", "pay", 80);
        let mut watcher = watcher("svc", "app=pay");
        watcher.start(0, &store.state, None);
        store.events.clear();
        store.put("Service", "a", "web", 80);
        store.put("Service", "a", "web", 81);
        store.put("Service", "a", "pay", 81);
        assert_eq!(store.told(&mut watcher), [pair("DELETED", "a"), pair("ADDED", "a")]);
    }

    #[test]
    fn a_status_that_may_have_changed_is_looked_at_where_it_may_have_and_nowhere_else() {
        let mut store = Store::default();
        store.put("NetworkPolicy", "p", "x", 0);
        let mut policies = watcher("netpol", "");
        let model = model();
        policies.start(0, &store.state, Some(&model));
        store.events.clear();
        store.put("Workload", "pay-1", "pay", 0);
        assert_eq!(store.told(&mut policies), []);
        assert!(policies.is_dirty());
        assert_eq!(names(&policies.refresh(&store.state, Some(&model))), [pair("MODIFIED", "p")]);
        assert!(!policies.is_dirty() && policies.refresh(&store.state, Some(&model)).is_empty());
        let mut routes = watcher("httproute", "");
        store.put("Workload", "pay-2", "pay", 0);
        store.told(&mut routes);
        assert!(!routes.is_dirty(), "routes don't depend on workloads");
    }
}
