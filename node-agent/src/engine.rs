//! Where everything that changes the kernel meets: updates of the control plane and pods that come and go, one
//! at a time.

mod names;
mod services;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ebpf_shared::{Direction, FlowKind, Metric, Reason, overlay::Hop};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use tokio::sync::watch;
use xds_client::Update;
use xds_proto::{isthmus::agent::v1::HostEndpoint, type_url};

use crate::{
    desired::{Desired, Dictionary, EndpointEntry, Full, Inputs, Listens, MapOp, Planner, Pod, PodAddresses},
    health::{self, Health},
    kernel::{Around, KernelError},
    maps::{MapError, Maps, Verified, verify_around},
    names::Names,
    subscribe::{HostPort, Resources, Touched},
};

pub use names::AdmitError;
use names::Kept;
use services::Refused;

/// Between attempts to write what the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// What is accepted is enforced.
const NO_NET: &str =
    "a policy selects this node, but its agent runs without --net-interface: nothing would enforce it";

/// The state of the node and its kernel. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Mutex<Inner>>,
    /// Counts changes; whoever waits for one looks again.
    changes: Arc<watch::Sender<u64>>,
}

struct Inner {
    addresses: PodAddresses,
    resources: Resources,
    pods: BTreeMap<NamespacedName, Pod>,
    /// Further addresses of the node, by which it speaks to pods that other plugins have made.
    gateways: BTreeSet<IpAddr>,
    /// What DNS has told pods of this node.
    names: Names,
    kept: Kept,
    /// What the kernel holds.
    current: Desired,
    planner: Planner,
    /// Since the last plan.
    touched: Touched,
    maps: Box<dyn Maps>,
    /// The last write failed: the kernel is not as it should be.
    behind: Option<MapError>,
    /// The map that has no room for what is to be written.
    full: Option<&'static str>,
    /// Sidecars that found no room: their pods are closed, or as they were.
    left_out: Option<MapError>,
    /// Services that are not as they should be.
    refused: Refused,
    /// Of how the node is set up, what is not as it should be: why, and the map that has no room.
    unset: BTreeMap<SetUp, (MapError, Option<&'static str>)>,
    /// A write was refused half-way, so that `current` may not be what the kernel holds.
    is_unsure: bool,
    /// No interface of the node has the programs.
    has_no_net: bool,
}

impl Engine {
    /// Takes over from the agent before this one: reads what the kernel holds, and changes nothing yet.
    ///
    /// # Errors
    /// The maps can't be read.
    pub fn new(addresses: impl Into<PodAddresses>, mut maps: Box<dyn Maps>) -> Result<Self, MapError> {
        let current = maps.snapshot()?;
        let planner = Planner::new(&current, maps.limits());
        let inner = Inner {
            addresses: addresses.into(),
            resources: Resources::default(),
            pods: BTreeMap::new(),
            gateways: BTreeSet::new(),
            names: Names::default(),
            kept: Kept::default(),
            current,
            planner,
            touched: Touched::default(),
            maps,
            behind: None,
            full: None,
            left_out: None,
            refused: Refused::default(),
            unset: BTreeMap::new(),
            is_unsure: false,
            has_no_net: false,
        };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), changes: Arc::new(watch::Sender::new(0)) })
    }

    /// Takes resources in without writing to the kernel: for the cache, which is read whole before anything is
    /// enforced by [`Engine::synchronise`].
    ///
    /// # Errors
    /// The text of a NACK.
    pub fn load(&self, update: &Update) -> Result<(), String> {
        self.lock().take(update)
    }

    /// Takes an update and writes it to the kernel. What is acknowledged is enforced.
    ///
    /// # Errors
    /// The text of the NACK: the update is invalid (then nothing is changed), or the kernel refused a write
    /// (which is tried again until it works, or the next update makes it unnecessary). Of services, those that were not
    /// refused are in the kernel all the same.
    pub fn apply(&self, update: &Update) -> Result<(), String> {
        let result = {
            let mut inner = self.lock();
            inner.take(update)?;
            inner.write().and_then(|()| inner.served(update)).map_err(|error| error.to_string())
        };
        self.tell();
        result
    }

    /// Brings the kernel to what it should be.
    ///
    /// # Errors
    /// The kernel refused a write of policy.
    pub fn synchronise(&self) -> Result<(), MapError> {
        let result = self.lock().write();
        self.tell();
        result
    }

    /// Attaches the programs to a link that is still down.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach(&self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.lock().maps.attach(interface, ifindex)
    }

    /// Detaches them again.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn detach(&self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.lock().maps.detach(interface, ifindex)
    }

    /// Indices of the interfaces that have the programs.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn attached(&self) -> Result<Vec<u32>, MapError> {
        self.lock().maps.attached()
    }

    /// The older map format whose programs still guard pods: [`Maps::migrates_from`].
    pub fn migrates_from(&self) -> Option<u32> {
        self.lock().maps.migrates_from()
    }

    /// Replaces what is left of the older format's programs.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn finish_migration(&self) -> Result<(), MapError> {
        self.lock().maps.finish_migration()
    }

    /// Flow events that found no room, ever.
    pub fn lost_events(&self) -> u64 {
        self.lock().maps.lost_events()
    }

    /// Packets and bytes by direction and what became of them, ever.
    pub fn packets(&self) -> Vec<(Direction, Reason, Metric)> {
        self.lock().maps.packets()
    }

    /// News that were counted and not told, by direction and reason, ever.
    pub fn suppressed(&self) -> Vec<(Direction, Reason, Metric)> {
        self.lock().maps.suppressed()
    }

    /// Says which node has which addresses, for the tunnel.
    ///
    /// # Errors
    /// The kernel refused, which is told of until a later call succeeds.
    pub fn set_hops(&self, hops: &BTreeMap<IpNet, Hop>) -> Result<(), MapError> {
        let mut inner = self.lock();
        let result = inner.maps.set_hops(hops);
        inner.note_set_up(SetUp::Nodes, result)
    }

    /// Says where the proxy of a name listens, if it is there, and writes it to the kernel: from then on, what policy
    /// lets only through it is handed to it, or refused. Its slot; [`ebpf_shared::redirect::NO_SLOT`] if there are too
    /// many.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn set_proxy(&self, name: &str, listens: Option<Listens>) -> Result<u16, MapError> {
        let mut inner = self.lock();
        let slot = inner.planner.set_proxy(name, listens);
        inner.write().map(|()| slot)
    }

    /// Says which addresses are this node's own, and where the control plane listens.
    ///
    /// # Errors
    /// The kernel refused, which is told of until a later call succeeds.
    pub fn set_host(
        &self,
        locals: &BTreeSet<IpAddr>,
        control: &BTreeSet<SocketAddr>,
    ) -> Result<(), MapError> {
        let mut inner = self.lock();
        let result = inner.maps.set_host(locals, control);
        inner.note_set_up(SetUp::Host, result)
    }

    /// Says that the programs are at no interface of the node: a policy for the node itself is refused.
    #[must_use]
    pub fn without_net(self) -> Self {
        self.lock().has_no_net = true;
        self
    }

    /// The same by kind of flow, of those that are remembered.
    pub fn flow_kinds(&self) -> BTreeMap<FlowKind, Metric> {
        self.lock().maps.flow_kinds()
    }

    /// Whether the kernel has refused a write that is still to be made.
    pub fn is_behind(&self) -> bool {
        self.lock().behind().is_some()
    }

    /// Whether that is one of policy: pods have an older one, or none.
    pub fn is_policy_behind(&self) -> bool {
        let inner = self.lock();
        inner.behind.is_some() || inner.left_out.is_some()
    }

    /// The map that has no room for what the kernel is to hold.
    pub fn full_map(&self) -> Option<&'static str> {
        let inner = self.lock();
        inner.full.or(inner.refused.full()).or(inner.unset.values().find_map(|(_, full)| *full))
    }

    /// The write that the kernel has refused, which is still to be made.
    pub fn behind(&self) -> Option<String> {
        self.lock().behind().map(|error| error.to_string())
    }

    /// Notes a pod without writing: for those that were there when the agent started.
    pub fn load_pod(&self, workload: NamespacedName, pod: Pod) {
        self.lock().put_pod(workload, Some(pod));
    }

    /// Says which further addresses are the node's own. Takes effect with the next change.
    pub fn set_gateways(&self, gateways: BTreeSet<IpAddr>) {
        let mut inner = self.lock();
        inner.gateways = gateways;
        inner.touched.nodes = true;
    }

    /// A pod is there. It has no traffic until its policy is in the kernel.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn add_pod(&self, workload: NamespacedName, pod: Pod) -> Result<(), MapError> {
        let result = {
            let mut inner = self.lock();
            inner.put_pod(workload, Some(pod));
            inner.write()
        };
        self.tell();
        result
    }

    /// Has ports of the node lead to a pod as soon as it is there, for as long as it is. Writes nothing by itself.
    pub fn lead_ports(&self, workload: NamespacedName, ports: Vec<HostPort>) {
        self.lock().resources.host_ports.insert(workload, ports);
    }

    /// A pod is gone.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn remove_pod(&self, workload: &NamespacedName) -> Result<(), MapError> {
        let result = {
            let mut inner = self.lock();
            inner.put_pod(workload.clone(), None);
            inner.resources.host_ports.remove(workload);
            inner.write()
        };
        self.tell();
        result
    }

    /// Whether a pod is there, with or without traffic.
    pub fn has_pod(&self, workload: &NamespacedName) -> bool {
        self.lock().pods.contains_key(workload)
    }

    /// What the kernel enforces for a pod; `None` while it has no traffic.
    pub fn enforced(&self, workload: &NamespacedName) -> Option<EndpointEntry> {
        let inner = self.lock();
        let pod = inner.pods.get(workload)?;
        inner.current.endpoints.get(&pod.ifindex).filter(|entry| entry.addresses == pod.addresses).copied()
    }

    /// Whether the policy that the control plane last told is in the kernel for a pod.
    pub fn is_current(&self, workload: &NamespacedName) -> bool {
        let inner = self.lock();
        let local = inner.resources.locals.get(workload);
        let known = local.is_some_and(|local| inner.resources.class(local.class).is_some());
        drop(inner);
        known && self.enforced(workload).is_some()
    }

    /// Looks at the resources.
    pub fn resources<T>(&self, look: impl FnOnce(&Resources) -> T) -> T {
        look(&self.lock().resources)
    }

    /// Looks at what the kernel holds, and the names of its policies.
    pub fn kernel<T>(&self, look: impl FnOnce(&Desired, &Dictionary) -> T) -> T {
        let inner = self.lock();
        look(&inner.current, inner.planner.dictionary())
    }

    /// Compares the kernel with what it is to hold. Nothing is written meanwhile: what is compared is one moment.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn verify(&self, bpffs: &Path) -> Result<Vec<Verified>, KernelError> {
        let inner = self.lock();
        let pods = inner.pods.values().map(|pod| pod.ifindex).collect();
        verify_around(bpffs, &inner.current, &Around { pods, ..inner.maps.around() })
    }

    /// What is said of services at their health ports.
    pub fn health(&self) -> BTreeMap<u16, Health> {
        let inner = self.lock();
        health::told(&inner.resources, &inner.pods)
    }

    /// Changes whenever resources, pods or the kernel did.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Removes from the kernel what nothing has needed since the last call.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn collect(&self) -> Result<(), MapError> {
        self.lock().collect()
    }

    /// Tries again what the kernel refused, and removes what nothing needs, for ever. Stop it by dropping the future.
    pub async fn retry_for_ever(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            if let Err(error) = self.collect() {
                tracing::error!(%error, "what nothing needs can't be removed from the kernel");
            }
            if self.is_behind()
                && let Err(error) = self.retry()
            {
                tracing::error!(%error, "the kernel still refuses a write");
            }
        }
    }

    /// Tries again what the kernel refused.
    ///
    /// # Errors
    /// It refused again.
    pub fn retry(&self) -> Result<(), MapError> {
        let result = self.lock().retry();
        self.tell();
        result
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the node's own is told apart from resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SetUp {
    /// Where other nodes are.
    Nodes,
    /// Its own addresses, and those of the control plane.
    Host,
}

fn sidecar(Full { map, wanted, limit }: &Full) -> MapError {
    let reason =
        format!("kernel map {map} has room for {limit} entries, {wanted} are wanted: all else is written");
    MapError { what: "leading a pod to its sidecar".to_owned(), reason }
}

impl Inner {
    fn note_set_up(&mut self, what: SetUp, result: Result<(), MapError>) -> Result<(), MapError> {
        match &result {
            Ok(()) => self.unset.remove(&what),
            Err(error) => self.unset.insert(what, (error.clone(), self.maps.full())),
        };
        result
    }

    fn take(&mut self, update: &Update) -> Result<(), String> {
        if self.has_no_net && update.type_url == type_url::<HostEndpoint>() && !update.added.is_empty() {
            return Err(NO_NET.to_owned());
        }
        let touched = self.resources.apply(update).map_err(|error| error.to_string())?;
        self.touched.extend(touched);
        Ok(())
    }

    fn put_pod(&mut self, workload: NamespacedName, pod: Option<Pod>) {
        let before = match pod {
            Some(pod) => self.pods.insert(workload.clone(), pod),
            None => self.pods.remove(&workload),
        };
        self.touched.pods.entry(workload).or_insert(before);
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            resources: &self.resources,
            node: self.addresses,
            gateways: &self.gateways,
            pods: &self.pods,
            names: &self.names,
        }
    }

    fn write(&mut self) -> Result<(), MapError> {
        let result = self.look_again().and_then(|()| self.plan_and_execute());
        self.behind = result.as_ref().err().cloned();
        if result.is_ok() {
            self.kept.unwritten.clear();
        }
        result
    }

    fn look_again(&mut self) -> Result<(), MapError> {
        if self.is_unsure {
            self.current = self.maps.snapshot()?;
            self.is_unsure = false;
        }
        Ok(())
    }

    /// Policy first; services have no say in whether it is written.
    fn plan_and_execute(&mut self) -> Result<(), MapError> {
        let mut touched = std::mem::take(&mut self.touched);
        // What was refused is in no plan otherwise.
        touched.all_services |= !self.refused.is_empty();
        // (Not `self.inputs()`: the planner is borrowed as well.)
        let inputs = Inputs {
            resources: &self.resources,
            node: self.addresses,
            gateways: &self.gateways,
            pods: &self.pods,
            names: &self.names,
        };
        let planned = self.planner.plan(inputs, &touched, &self.current);
        self.full = planned.as_ref().err().map(|full| full.map);
        let left_out = self.planner.take_left_out();
        self.full = self.full.or(left_out.as_ref().map(|full| full.map));
        self.left_out = left_out.as_ref().map(sidecar);
        let result = match planned {
            Ok(ops) => self.execute(&ops),
            Err(full) => Err(MapError { what: "planning".to_owned(), reason: full.to_string() }),
        };
        if result.is_err() {
            self.full = self.full.or(self.maps.full());
        }
        self.planner.done(&self.current, result.is_ok() && left_out.is_none());
        let services = self.planner.take_services();
        self.serve(services);
        result
    }

    /// What comes later in the order relies on what comes before, so it ends at the first error.
    fn execute(&mut self, ops: &[MapOp]) -> Result<(), MapError> {
        let (made, result) = match self.maps.execute(ops) {
            Ok(()) => (ops.len(), Ok(())),
            Err((place, error)) => (place, Err(error)),
        };
        for op in ops.iter().take(made) {
            op.apply(&mut self.current);
        }
        self.is_unsure |= result.is_err();
        result
    }

    fn collect(&mut self) -> Result<(), MapError> {
        self.look_again()?;
        let ops = self.planner.collect(&self.current);
        let result = self.execute(&ops);
        self.planner.done(&self.current, result.is_ok());
        result
    }
}
