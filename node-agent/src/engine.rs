//! Where everything that changes the kernel meets: updates of the control plane and pods that come and go, one
//! at a time.

mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
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
    desired::{Desired, Dictionary, EndpointEntry, Inputs, Listens, MapOp, Planner, Pod, PodAddresses},
    health::{self, Health},
    maps::{MapError, Maps},
    names::Names,
    subscribe::{HostPort, Resources, Touched},
};

pub use names::AdmitError;
use names::Kept;

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
    /// (which is tried again until it works, or the next update makes it unnecessary).
    pub fn apply(&self, update: &Update) -> Result<(), String> {
        let result = {
            let mut inner = self.lock();
            inner.take(update)?;
            inner.write().map_err(|error| error.to_string())
        };
        self.tell();
        result
    }

    /// Brings the kernel to what it should be.
    ///
    /// # Errors
    /// The kernel refused a write.
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
    /// The kernel refused.
    pub fn set_hops(&self, hops: &BTreeMap<IpNet, Hop>) -> Result<(), MapError> {
        self.lock().maps.set_hops(hops)
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
    /// The kernel refused.
    pub fn set_host(
        &self,
        locals: &BTreeSet<IpAddr>,
        control: &BTreeSet<SocketAddr>,
    ) -> Result<(), MapError> {
        self.lock().maps.set_host(locals, control)
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
        self.lock().behind.is_some()
    }

    /// The map that has no room for what the kernel is to hold.
    pub fn full_map(&self) -> Option<&'static str> {
        self.lock().full
    }

    /// The write that the kernel has refused, which is still to be made.
    pub fn behind(&self) -> Option<String> {
        self.lock().behind.as_ref().map(ToString::to_string)
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
                && let Err(error) = self.synchronise()
            {
                tracing::error!(%error, "the kernel still refuses a write");
            }
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
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

    fn plan_and_execute(&mut self) -> Result<(), MapError> {
        let touched = std::mem::take(&mut self.touched);
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
        let result = match planned {
            Ok(ops) => self.execute(&ops),
            Err(full) => Err(MapError { what: "planning".to_owned(), reason: full.to_string() }),
        };
        if result.is_err() {
            self.full = self.full.or(self.maps.full());
        }
        self.planner.done(&self.current, result.is_ok());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use crate::{maps::MemoryMaps, subscribe::update_fixture as update};
    use xds_proto::isthmus::agent::v1 as wire;

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "pay")
    }

    fn engine(failures: u32) -> Engine {
        let maps = MemoryMaps { failures, ..MemoryMaps::default() };
        Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(maps)).unwrap()
    }

    fn local() -> wire::LocalEndpoint {
        wire::LocalEndpoint {
            name: "shop/pay".into(),
            identity: 300,
            spiffe_id: "spiffe://west.example/ns/shop/sa/pay".into(),
            policy_class: 7,
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_has_traffic_only_once_its_endpoint_and_its_class_have_come() {
        let engine = engine(0);
        let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
        engine.add_pod(name(), pod).unwrap();
        assert_eq!(engine.enforced(&name()), None);
        engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
        assert!(engine.enforced(&name()).is_none() && !engine.is_current(&name()));
        engine.apply(&update(&[("7", wire::PolicyClass { id: 7, ..Default::default() })], &[])).unwrap();
        assert_eq!(engine.enforced(&name()).unwrap().identity, 300);
        assert!(engine.is_current(&name()));
        engine.remove_pod(&name()).unwrap();
        assert_eq!(engine.enforced(&name()), None);
    }

    #[test]
    fn an_answer_is_let_through_when_the_kernel_has_it_and_not_before() {
        let engine = engine(0);
        let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
        engine.add_pod(name(), pod).unwrap();
        engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
        let rule = wire::PolicyRule {
            direction: wire::Direction::Egress as i32,
            action: wire::Action::QualifiedAllow as i32,
            name: Some(wire::NamePattern { pattern: "*.example.com".into(), ..Default::default() }),
            ..Default::default()
        };
        let class =
            wire::PolicyClass { id: 7, default_deny_egress: true, rules: vec![rule], ..Default::default() };
        engine.apply(&update(&[("7", class)], &[])).unwrap();
        // Until workloads were told of, what the kernel knows of addresses stays.
        engine.apply(&update::<wire::WorkloadAddress>(&[], &["shop/gone"])).unwrap();
        let at = |n: u8| (IpAddr::from([198, 51, 100, n]), Duration::from_secs(60));
        let held = |n: u8| engine.kernel(|kernel, _| kernel.identities.get(&IpNet::from(at(n).0)).copied());
        engine.admit("www.example.com", &[at(1)], 1_000).unwrap();
        engine.admit("www.example.org", &[at(2)], 1_000).unwrap();
        assert!(held(1).is_some() && held(2).is_none(), "nobody names the other one");
        // When its time is over it is of use to what is there alone, and then to nothing.
        assert_eq!(engine.lapse_names(1_060).unwrap(), [at(1).0, at(2).0].into());
        let lingering = || engine.kernel(|kernel, _| kernel.lingering.keys().copied().collect::<Vec<_>>());
        assert_eq!((held(1), lingering()), (None, vec![at(1).0]));
        engine.forget_names(&[at(1).0, at(2).0].into()).unwrap();
        assert_eq!((lingering(), engine.names_known()), (vec![], (0, 0, 0)));
    }

    #[test]
    fn a_write_that_the_kernel_refuses_is_a_nack_and_is_tried_again() {
        let engine = engine(1);
        let address = wire::WorkloadAddress {
            name: "shop/web".into(),
            addresses: vec!["10.1.2.2".into()],
            identity: 301,
            ..Default::default()
        };
        let refused = engine.apply(&update(&[("shop/web", address)], &[])).unwrap_err();
        assert!(refused.contains("told to fail"), "{refused}");
        let net = "10.1.2.2/32".parse().unwrap();
        assert_eq!(engine.kernel(|kernel, _| kernel.identities.get(&net).copied()), None);
        engine.synchronise().unwrap();
        assert_eq!(engine.kernel(|kernel, _| kernel.identities.get(&net).copied()), Some(301));
    }
}
