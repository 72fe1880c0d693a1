//! Where everything that changes the kernel meets: updates of the control plane and pods that come and go, one
//! at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ebpf_shared::{Direction, Metric, Reason};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use tokio::sync::watch;
use xds_client::Update;

use crate::{
    desired::{Desired, Dictionary, EndpointEntry, Pod, PodAddresses, compute, plan},
    maps::{MapError, Maps},
    subscribe::{HostPort, Resources},
};

/// Between attempts to write what the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

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
    /// What the kernel holds.
    current: Desired,
    dictionary: Dictionary,
    maps: Box<dyn Maps>,
    /// The last write failed: the kernel is not as it should be.
    behind: Option<MapError>,
}

impl Engine {
    /// Takes over from the agent before this one: reads what the kernel holds, and changes nothing yet.
    ///
    /// # Errors
    /// The maps can't be read.
    pub fn new(addresses: impl Into<PodAddresses>, mut maps: Box<dyn Maps>) -> Result<Self, MapError> {
        let current = maps.snapshot()?;
        let dictionary = Dictionary::recover(&current);
        let inner = Inner {
            addresses: addresses.into(),
            resources: Resources::default(),
            pods: BTreeMap::new(),
            gateways: BTreeSet::new(),
            current,
            dictionary,
            maps,
            behind: None,
        };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), changes: Arc::new(watch::Sender::new(0)) })
    }

    /// Takes resources in without writing to the kernel: for the cache, which is read whole before anything is
    /// enforced by [`Engine::synchronise`].
    ///
    /// # Errors
    /// The text of a NACK.
    pub fn load(&self, update: &Update) -> Result<(), String> {
        self.lock().resources.apply(update).map_err(|error| error.to_string())
    }

    /// Takes an update and writes it to the kernel. What is acknowledged is enforced.
    ///
    /// # Errors
    /// The text of the NACK: the update is invalid (then nothing is changed), or the kernel refused a write
    /// (which is tried again until it works, or the next update makes it unnecessary).
    pub fn apply(&self, update: &Update) -> Result<(), String> {
        let result = {
            let mut inner = self.lock();
            inner.resources.apply(update).map_err(|error| error.to_string())?;
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

    /// Flow events that found no room, ever.
    pub fn lost_events(&self) -> u64 {
        self.lock().maps.lost_events()
    }

    /// Packets and bytes by direction and what became of them, ever.
    pub fn packets(&self) -> Vec<(Direction, Reason, Metric)> {
        self.lock().maps.packets()
    }

    /// Whether the kernel has refused a write that is still to be made.
    pub fn is_behind(&self) -> bool {
        self.lock().behind.is_some()
    }

    /// Notes a pod without writing: for those that were there when the agent started.
    pub fn load_pod(&self, workload: NamespacedName, pod: Pod) {
        self.lock().pods.insert(workload, pod);
    }

    /// Says which further addresses are the node's own. Takes effect with the next change.
    pub fn set_gateways(&self, gateways: BTreeSet<IpAddr>) {
        self.lock().gateways = gateways;
    }

    /// A pod is there. It has no traffic until its policy is in the kernel.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn add_pod(&self, workload: NamespacedName, pod: Pod) -> Result<(), MapError> {
        let result = {
            let mut inner = self.lock();
            inner.pods.insert(workload, pod);
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
            inner.pods.remove(workload);
            inner.resources.host_ports.remove(workload);
            inner.write()
        };
        self.tell();
        result
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
        look(&inner.current, &inner.dictionary)
    }

    /// Changes whenever resources, pods or the kernel did.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tries again what the kernel refused, for ever. Stop it by dropping the future.
    pub async fn retry_for_ever(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
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
    fn write(&mut self) -> Result<(), MapError> {
        let mut desired =
            compute(&self.resources, self.addresses, &self.pods, &self.current, &mut self.dictionary);
        // Whatever identity the node's address has: a gateway of the mesh may run on it.
        let own = desired.identities.get(&IpNet::from(IpAddr::V4(self.addresses.v4))).copied();
        let own = own.unwrap_or(ebpf_shared::identity::HOST);
        desired.identities.extend(self.gateways.iter().map(|gateway| (IpNet::from(*gateway), own)));
        self.behind = None;
        for op in plan(&self.current, &desired, &mut self.dictionary) {
            if let Err(error) = self.maps.execute(&op) {
                // What comes later in the order relies on this write, so it must wait.
                self.behind = Some(error.clone());
                return Err(error);
            }
            op.apply(&mut self.current);
        }
        Ok(())
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
