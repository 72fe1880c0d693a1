//! Names that are fresh enough, for whoever needs them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use xds_proto::isthmus::bootstrap::v1::Flow;

use super::{Names, Record};
use crate::{cni::SharedRegistry, engine::Engine};

/// Names are as old as this at most while the mesh changes: gathering them takes longer the larger it is.
const FRESH: Duration = Duration::from_millis(250);

/// Names flows. Cheap to clone.
#[derive(Clone)]
pub struct Namer {
    node: String,
    engine: Engine,
    registry: SharedRegistry,
    cached: Arc<Mutex<Cached>>,
}

struct Cached {
    names: Arc<Names>,
    gathered: Option<Instant>,
    changes: watch::Receiver<u64>,
}

impl Namer {
    /// Of the node with this name.
    pub fn new(node: String, engine: Engine, registry: SharedRegistry) -> Self {
        let changes = engine.changes();
        let cached = Cached { names: Arc::new(Names::default()), gathered: None, changes };
        Self { node, engine, registry, cached: Arc::new(Mutex::new(cached)) }
    }

    /// What is behind numbers and addresses now, or a moment ago.
    pub fn names(&self) -> Arc<Names> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = cached.changes.has_changed().unwrap_or(false);
        let is_fresh = cached.gathered.is_some_and(|at| !changed || at.elapsed() < FRESH);
        if !is_fresh {
            cached.changes.borrow_and_update();
            let names = self.engine.resources(|resources| Names::of(&self.node, resources));
            let pods = self.registry.lock();
            let interfaces: BTreeMap<u32, String> =
                pods.iter().map(|pod| (pod.ifindex, pod.host_interface.clone())).collect();
            drop(pods);
            cached.names = Arc::new(names.with_interfaces(interfaces));
            cached.gathered = Some(Instant::now());
        }
        cached.names.clone()
    }

    /// A flow with its names.
    pub fn name(&self, names: &Names, record: &Record) -> Flow {
        let policy = self.engine.kernel(|_, dictionary| {
            dictionary.provenance(record.event.policy_id).unwrap_or_default().to_owned()
        });
        names.name(record, &policy)
    }
}
