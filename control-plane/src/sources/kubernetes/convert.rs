//! Kubernetes' objects and events, turned into commands. Pure.

use std::collections::BTreeSet;

use mesh_model::resource::{DRAIN_ANNOTATION, Kind, NamespacedName, Object, ObjectKey};
use mesh_store::{Command, State};
use serde_json::{Value, json};

/// Marks what came from Kubernetes, so that only that is deleted when Kubernetes no longer has it.
pub const SOURCE_ANNOTATION: &str = "isthmus.io/source";
/// Its value.
pub const SOURCE: &str = "kubernetes";
/// kubectl's copy of what was applied: as large as the object, and of no use here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a watch tells, without Kubernetes' types.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// A list begins: what is not in it is gone.
    Listing,
    /// An object of the list.
    Listed(Value),
    /// The list is complete.
    ListedAll,
    /// An object is new or was changed.
    Applied(Value),
    /// An object is gone.
    Deleted(Value),
}

/// The watch of one kind.
#[derive(Debug)]
pub struct Follower {
    kind: Kind,
    listed: Option<BTreeSet<NamespacedName>>,
}

impl Follower {
    /// Has seen nothing.
    pub fn new(kind: Kind) -> Self {
        Self { kind, listed: None }
    }

    /// What an event leads to.
    ///
    /// # Errors
    /// The object can't be used here, in one sentence. What the store has of it stays.
    pub fn follow(&mut self, event: WatchEvent, state: &State) -> Result<Option<Command>, String> {
        match event {
            WatchEvent::Listing => {
                self.listed = Some(BTreeSet::new());
                Ok(None)
            }
            WatchEvent::Listed(value) => {
                // Before it is parsed: an object that can't be used has not gone.
                if let (Some(listed), Some(name)) = (&mut self.listed, name_of(self.kind, &value)) {
                    listed.insert(name);
                }
                apply(self.kind, value).map(Some)
            }
            WatchEvent::Applied(value) => apply(self.kind, value).map(Some),
            WatchEvent::Deleted(value) => {
                let gone = name_of(self.kind, &value).map(|name| ObjectKey { kind: self.kind, name });
                let keys: Vec<ObjectKey> = gone.into_iter().filter(|key| is_ours(state, key)).collect();
                Ok((!keys.is_empty()).then_some(Command::Delete { keys }))
            }
            WatchEvent::ListedAll => {
                let listed = self.listed.take().unwrap_or_default();
                let keys: Vec<ObjectKey> = state
                    .objects
                    .keys()
                    .filter(|key| key.kind == self.kind && !listed.contains(&key.name) && is_ours(state, key))
                    .cloned()
                    .collect();
                Ok((!keys.is_empty()).then_some(Command::Delete { keys }))
            }
        }
    }
}

fn apply(kind: Kind, value: Value) -> Result<Command, String> {
    let object = Object::parse(&prepared(kind, value)).map_err(|e| e.to_string())?;
    Ok(Command::Apply { objects: vec![object], dry_run: false })
}

/// Without what only means something in the API server that it came from.
fn prepared(kind: Kind, mut value: Value) -> Value {
    value["apiVersion"] = json!(kind.api_version());
    value["kind"] = json!(kind.as_str());
    if let Value::Object(root) = &mut value {
        // Where load balancers are is for them to say, and for the service to be reached by.
        if kind != Kind::Service {
            root.remove("status");
        }
    }
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        // A precondition here; another store's number there.
        metadata.remove("resourceVersion");
        let ends =
            kind == Kind::Workload && metadata.get("deletionTimestamp").is_some_and(|at| !at.is_null());
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Value::Object(annotations) = annotations {
            if ends {
                annotations.insert(DRAIN_ANNOTATION.to_owned(), json!("true"));
            }
            annotations.remove(LAST_APPLIED);
            annotations.insert(SOURCE_ANNOTATION.to_owned(), json!(SOURCE));
        }
    }
    if let (Kind::Service, Some(Value::Object(spec))) = (kind, value.get_mut("spec")) {
        // Kubernetes' virtual IP is of its own range; ours is allocated by the store.
        if spec.get("clusterIP").is_some_and(|ip| ip != "None") {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
            // So are its families: where it has both, the service has what there is here.
            spec.remove("ipFamilies");
            if spec.get("ipFamilyPolicy").is_some_and(|policy| policy == "RequireDualStack") {
                spec.insert("ipFamilyPolicy".to_owned(), json!("PreferDualStack"));
            }
        }
    }
    value
}

fn name_of(kind: Kind, value: &Value) -> Option<NamespacedName> {
    let text = |field: &str| value["metadata"][field].as_str();
    Some(kind.name(text("namespace").unwrap_or("default"), text("name")?))
}

fn is_ours(state: &State, key: &ObjectKey) -> bool {
    state
        .objects
        .get(key)
        .is_some_and(|object| object.meta().annotations.get(SOURCE_ANNOTATION).is_some_and(|s| s == SOURCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "namespace": "shop", "uid": "u", "resourceVersion": "812",
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubectl"}],
                "annotations": {LAST_APPLIED: "{}"},
            },
            "spec": {
                "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "type": "ClusterIP",
                "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "selector": {"app": "pay"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
            },
            "status": {"loadBalancer": {}},
        })
    }

    /// A state that holds what the commands put there.
    fn state(commands: &[Command]) -> State {
        let mut state = State::default();
        for command in commands {
            let Command::Apply { objects, .. } = command else { panic!("only applies are expected") };
            state.objects.extend(objects.iter().map(|object| (object.key(), object.clone())));
        }
        state
    }

    #[test]
    fn a_service_as_an_api_server_returns_it_is_taken_without_what_is_only_its_own() {
        let mut follower = Follower::new(Kind::Service);
        let command = follower.follow(WatchEvent::Applied(service("pay")), &State::default()).unwrap();
        let Some(Command::Apply { objects, dry_run: false }) = command else { panic!("{command:?}") };
        let [Object::Service(taken)] = objects.as_slice() else { panic!("{objects:?}") };
        assert_eq!(taken.cluster_ip, None);
        assert_eq!(taken.meta.resource_version, None);
        assert_eq!(taken.meta.annotations.len(), 1);
    }

    #[test]
    fn a_workload_that_is_being_deleted_drains_until_it_is_gone() {
        let workload = |deleted: Value| {
            json!({"metadata": {"name": "pay-1", "namespace": "shop", "deletionTimestamp": deleted,
                "deletionGracePeriodSeconds": 30, "finalizers": ["example.com/wait"]}})
        };
        for (deleted, draining) in [(json!("2026-01-01T00:00:00Z"), true), (Value::Null, false)] {
            let event = WatchEvent::Applied(workload(deleted));
            let command = Follower::new(Kind::Workload).follow(event, &State::default()).unwrap();
            let Some(Command::Apply { objects, .. }) = command else { panic!("{command:?}") };
            let [Object::Workload(taken)] = objects.as_slice() else { panic!("{objects:?}") };
            assert_eq!(taken.is_draining(), draining);
        }
    }

    #[test]
    fn what_is_gone_after_a_new_list_is_deleted_and_what_users_applied_here_is_not() {
        let mut follower = Follower::new(Kind::Service);
        let from_kubernetes: Vec<Command> = ["a", "b"]
            .map(|name| {
                follower.follow(WatchEvent::Applied(service(name)), &State::default()).unwrap().unwrap()
            })
            .into();
        let mut state = state(&from_kubernetes);
        let own = Object::parse(&service("own")).unwrap();
        state.objects.insert(own.key(), std::sync::Arc::new(own));
        assert_eq!(follower.follow(WatchEvent::Listing, &state), Ok(None));
        follower.follow(WatchEvent::Listed(service("a")), &state).unwrap();
        let Some(Command::Delete { keys }) = follower.follow(WatchEvent::ListedAll, &state).unwrap() else {
            panic!("nothing was deleted");
        };
        assert_eq!(keys.iter().map(|k| k.name.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(follower.follow(WatchEvent::Deleted(service("own")), &state), Ok(None));
    }

    #[test]
    fn an_object_that_can_not_be_used_is_named_and_not_taken_for_deleted() {
        let mut follower = Follower::new(Kind::Service);
        let command = follower.follow(WatchEvent::Applied(service("a")), &State::default()).unwrap().unwrap();
        let state = state(&[command]);
        let mut broken = service("a");
        broken["spec"]["type"] = json!("ExternalName");
        follower.follow(WatchEvent::Listing, &state).unwrap();
        let error = follower.follow(WatchEvent::Listed(broken), &state).unwrap_err();
        assert!(error.contains("service/shop/a"), "{error}");
        assert_eq!(follower.follow(WatchEvent::ListedAll, &state), Ok(None));
    }
}
