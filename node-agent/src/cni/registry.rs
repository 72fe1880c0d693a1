//! The pods of this node, as they are remembered on disk: a file for each. It is written before the network is touched,
//! so that whatever an agent that died half-way left behind is known by name.
//!
//! What happens to a pod is in its file when a call returns, for the next agent to find, and the disk is waited for once,
//! when the pod is finished ([`SharedRegistry::finish`]): a machine that loses its power loses the links of all pods with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::Ipv4Net;
use mesh_model::resource::NamespacedName;
use serde::Deserialize;
use thiserror::Error;

use super::{
    Endpoint, EndpointKey, HostPort, IpamError, allocate,
    endpoint::{hash, host_interface},
    netns::NetnsId,
};
use crate::persist;

/// Holds a file for each pod.
const DIR: &str = "endpoints";
/// In it: the address that was given out last.
const LAST: &str = "last-address";
/// All pods in one, as releases before this one wrote it. Read once, and then removed.
const OLD_FILE: &str = "endpoints.json";
/// Of the files of pods.
const SUFFIX: &str = ".json";

/// Why a pod can't be remembered.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RegistryError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "{path} is damaged ({error}); run `node-agent cleanup`, remove the file and create the pods again"
    )]
    Damaged { path: String, error: serde_json::Error },
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error("workload {workload} already runs here, in container {container_id}")]
    Taken { workload: NamespacedName, container_id: String },
    #[error("container {container_id} already runs workload {workload} on {ifname}")]
    Mismatch { container_id: String, ifname: String, workload: NamespacedName },
    #[error(
        "network namespace {netns} is that of workload {workload} already, in container {container_id} on {ifname}; \
         a network namespace has one workload"
    )]
    Occupied { netns: String, workload: NamespacedName, container_id: String, ifname: String },
    #[error("address {address} is that of workload {workload} already, in container {container_id}")]
    AddressTaken { address: IpAddr, workload: NamespacedName, container_id: String },
    #[error("host port {port} is that of workload {workload} already, in container {container_id}")]
    HostPortTaken { port: HostPort, workload: NamespacedName, container_id: String },
    #[error("interface {interface} is that of workload {workload} already, in container {container_id}")]
    InterfaceTaken { interface: String, workload: NamespacedName, container_id: String },
}

#[derive(Debug, Default, Deserialize)]
struct Old {
    last_address: Option<Ipv4Addr>,
    endpoints: Vec<Endpoint>,
}

/// All pods of this node.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    cidr: Ipv4Net,
    last_address: Option<Ipv4Addr>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
}

impl Registry {
    /// Reads what the agent before this one knew.
    ///
    /// # Errors
    /// A file is there and can't be used.
    pub fn open(state_dir: &Path, cidr: Ipv4Net) -> Result<Self, RegistryError> {
        let dir = state_dir.join(DIR);
        persist::private_dir(&dir).map_err(|error| at(&dir, error))?;
        let mut registry = Self { dir, cidr, last_address: None, endpoints: BTreeMap::new() };
        registry.take_over(&state_dir.join(OLD_FILE))?;
        for entry in fs::read_dir(&registry.dir).map_err(|error| at(&registry.dir, error))? {
            let entry = entry.map_err(|error| at(&registry.dir, error))?;
            let path = entry.path();
            if !entry.file_name().to_str().is_some_and(|name| name.ends_with(SUFFIX)) {
                continue;
            }
            match read::<Endpoint>(&path)? {
                Some(endpoint) => drop(registry.endpoints.insert(endpoint.key(), endpoint)),
                // The machine lost its power before the pod was finished, and with that all that there was of it.
                None => persist::remove(&path).map_err(|error| at(&path, error))?,
            }
        }
        let last = persist::read_optional(&registry.dir.join(LAST)).ok().flatten();
        let last = last.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok());
        registry.last_address = last.or(registry.last_address);
        Ok(registry)
    }

    /// The one file of an earlier release becomes many. It goes when they are there.
    fn take_over(&mut self, path: &Path) -> Result<(), RegistryError> {
        let Some(old) = read::<Old>(path)? else { return Ok(()) };
        for endpoint in old.endpoints {
            let (path, bytes) = self.file(&endpoint)?;
            persist::write_private(&path, &bytes).map_err(|error| at(&path, error))?;
        }
        self.remember_last(old.last_address);
        persist::remove(path).map_err(|error| at(path, error))
    }

    /// Every pod, in order of container.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// One pod.
    pub fn get(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.endpoints.get(key)
    }

    /// The pod that runs a workload.
    pub fn by_workload(&self, workload: &NamespacedName) -> Option<&Endpoint> {
        self.endpoints.values().find(|endpoint| endpoint.workload == *workload)
    }

    /// The pod with this network namespace.
    pub fn by_netns(&self, netns: NetnsId) -> Option<&Endpoint> {
        self.endpoints.values().find(|endpoint| endpoint.netns_id == netns)
    }

    /// All addresses by which pods that other plugins have made know this node.
    pub fn gateways(&self) -> BTreeSet<IpAddr> {
        self.iter().flat_map(|endpoint| endpoint.gateways.iter().copied()).collect()
    }

    /// Remembers a new pod, not ready. Its `ifindex` is filled in later, and unless another plugin has made it so are
    /// here `address` and `host_interface`.
    ///
    /// # Errors
    /// The workload, the container, the network namespace, an address, a port or an interface is taken, no address is
    /// free, or the disk can't be written.
    pub fn begin(&mut self, mut endpoint: Endpoint) -> Result<Endpoint, RegistryError> {
        let key = endpoint.key();
        self.check_free(&endpoint)?;
        if !endpoint.chained {
            let used: BTreeSet<Ipv4Addr> = self.iter().map(|known| known.address).collect();
            endpoint.address = allocate(self.cidr, &used, self.last_address)?;
            endpoint.host_interface = host_interface(&key);
        }
        self.check_places(&endpoint)?;
        endpoint.ifindex = 0;
        endpoint.ready = false;
        self.save(&endpoint)?;
        if !endpoint.chained {
            self.remember_last(Some(endpoint.address));
        }
        self.endpoints.insert(key, endpoint.clone());
        Ok(endpoint)
    }

    /// Whether nobody else is the workload, has the container's interface or lives in the namespace.
    fn check_free(&self, endpoint: &Endpoint) -> Result<(), RegistryError> {
        let key = endpoint.key();
        if let Some(known) = self.endpoints.get(&key) {
            return Err(RegistryError::Mismatch {
                container_id: key.container_id,
                ifname: key.ifname,
                workload: known.workload.clone(),
            });
        }
        if let Some(known) = self.by_workload(&endpoint.workload) {
            let (workload, container_id) = (known.workload.clone(), known.container_id.clone());
            return Err(RegistryError::Taken { workload, container_id });
        }
        match self.iter().find(|known| known.is_in(endpoint.netns_id, endpoint.netns_cookie)) {
            None => Ok(()),
            Some(known) => Err(RegistryError::Occupied {
                netns: endpoint.netns.clone(),
                workload: known.workload.clone(),
                container_id: known.container_id.clone(),
                ifname: known.ifname.clone(),
            }),
        }
    }

    /// Whether nobody else has its addresses, ports and host interface.
    fn check_places(&self, endpoint: &Endpoint) -> Result<(), RegistryError> {
        for known in self.iter() {
            let (workload, container_id) = (known.workload.clone(), known.container_id.clone());
            if let Some(address) = endpoint.addresses().iter().find(|one| known.addresses().has(*one)) {
                return Err(RegistryError::AddressTaken { address, workload, container_id });
            }
            if known.host_interface == endpoint.host_interface {
                let interface = known.host_interface.clone();
                return Err(RegistryError::InterfaceTaken { interface, workload, container_id });
            }
            let taken = |port: &&HostPort| known.host_ports.iter().any(|other| other.collides(port));
            if let Some(port) = endpoint.host_ports.iter().find(taken) {
                return Err(RegistryError::HostPortTaken { port: *port, workload, container_id });
            }
        }
        Ok(())
    }

    /// Remembers what became of a pod.
    ///
    /// # Errors
    /// The disk can't be written.
    pub fn update(&mut self, endpoint: Endpoint) -> Result<(), RegistryError> {
        let saved = self.save(&endpoint);
        self.endpoints.insert(endpoint.key(), endpoint);
        saved
    }

    /// Forgets a pod, and frees its address.
    ///
    /// # Errors
    /// The disk can't be written.
    pub fn remove(&mut self, key: &EndpointKey) -> Result<Option<Endpoint>, RegistryError> {
        let removed = self.endpoints.remove(key);
        if removed.is_some() {
            let path = self.path(key);
            persist::remove(&path).map_err(|error| at(&path, error))?;
        }
        Ok(removed)
    }

    fn path(&self, key: &EndpointKey) -> PathBuf {
        self.dir.join(format!("{:016x}{SUFFIX}", hash(key)))
    }

    /// What is to be written of a pod, and where.
    fn file(&self, endpoint: &Endpoint) -> Result<(PathBuf, Vec<u8>), RegistryError> {
        let path = self.path(&endpoint.key());
        match serde_json::to_vec_pretty(endpoint) {
            Ok(bytes) => Ok((path, bytes)),
            Err(error) => Err(RegistryError::Damaged { path: path.display().to_string(), error }),
        }
    }

    fn save(&self, endpoint: &Endpoint) -> Result<(), RegistryError> {
        let (path, bytes) = self.file(endpoint)?;
        persist::write_private_later(&path, &bytes).map_err(|error| at(&path, error))
    }

    /// Only so that an address rests: if it is lost, nothing is wrong.
    fn remember_last(&mut self, address: Option<Ipv4Addr>) {
        self.last_address = address.or(self.last_address);
        if let Some(address) = address {
            let _ = fs::write(self.dir.join(LAST), address.to_string());
        }
    }
}

fn at(path: &Path, error: io::Error) -> RegistryError {
    RegistryError::Io { path: path.display().to_string(), error }
}

/// `None`: there is no such file, or nothing was ever written to it, as file systems leave one that was not waited for.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RegistryError> {
    let bytes = persist::read_optional(path).map_err(|error| at(path, error))?;
    let bytes = bytes.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
    let parse = |bytes: Vec<u8>| {
        serde_json::from_slice(&bytes)
            .map_err(|error| RegistryError::Damaged { path: path.display().to_string(), error })
    };
    bytes.map(parse).transpose()
}

/// The registry as its users share it. A lock is never held while waiting for anything.
#[derive(Debug, Clone)]
pub struct SharedRegistry(Arc<Mutex<Registry>>);

impl SharedRegistry {
    /// Shares it.
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Remembers a pod as finished. That is on disk when the call returns; pods that are finished at the same time wait
    /// for it together. Is to be called by whoever works on the pod.
    ///
    /// # Errors
    /// The disk can't be written.
    pub async fn finish(&self, endpoint: Endpoint) -> Result<(), RegistryError> {
        let (path, bytes) = self.lock().file(&endpoint)?;
        let place = path.clone();
        let written = tokio::task::spawn_blocking(move || persist::write_private(&place, &bytes)).await;
        written.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| at(&path, error))?;
        self.lock().endpoints.insert(endpoint.key(), endpoint);
        Ok(())
    }

    /// Takes it. Every change is complete before anything can panic, so a poisoned lock is as good as any.
    pub fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cni::MTU;

    pub(crate) fn endpoint(container: &str, workload: &str) -> Endpoint {
        Endpoint {
            container_id: container.into(),
            ifname: "eth0".into(),
            workload: NamespacedName::parse(workload).unwrap(),
            netns: format!("/run/netns/{container}"),
            netns_id: NetnsId::for_test(container.bytes().map(u64::from).sum()),
            netns_cookie: 7,
            address: Ipv4Addr::UNSPECIFIED,
            address6: None,
            host_interface: String::new(),
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 2],
            ifindex: 0,
            ready: false,
            network: "mesh".into(),
            chained: false,
            gateways: Vec::new(),
            host_ports: Vec::new(),
            mtu: MTU,
        }
    }

    #[tokio::test]
    async fn a_finished_pod_is_on_disk_and_one_that_the_disk_lost_before_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap());
        let shared = SharedRegistry::new(open().unwrap());
        let pod = shared.lock().begin(endpoint("c1", "shop/pay")).unwrap();
        let finished = Endpoint { ready: true, ifindex: 9, ..pod };
        shared.finish(finished.clone()).await.unwrap();
        assert_eq!(shared.lock().get(&finished.key()), Some(&finished));
        let path = shared.lock().path(&finished.key());
        assert_eq!(open().unwrap().get(&finished.key()), Some(&finished));
        for lost in [Vec::new(), vec![0; 4096]] {
            fs::write(&path, lost).unwrap();
            assert_eq!(open().unwrap().iter().count(), 0);
            assert!(!path.exists());
        }
        fs::write(&path, "{").unwrap();
        assert!(matches!(open(), Err(RegistryError::Damaged { .. })));
    }

    #[test]
    fn pods_are_remembered_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let cidr = "10.1.1.0/24".parse().unwrap();
        let mut registry = Registry::open(dir.path(), cidr).unwrap();
        let one = registry.begin(endpoint("c1", "shop/web")).unwrap();
        let two = registry.begin(endpoint("c2", "shop/pay")).unwrap();
        assert_eq!((one.address.octets()[3], two.address.octets()[3]), (2, 3));
        registry.update(Endpoint { ifindex: 9, ready: true, ..two.clone() }).unwrap();
        registry.remove(&one.key()).unwrap();

        let mut again = Registry::open(dir.path(), cidr).unwrap();
        assert_eq!(again.iter().count(), 1);
        assert_eq!(again.by_netns(two.netns_id).unwrap().ifindex, 9);
        // The freed address rests.
        assert_eq!(again.begin(endpoint("c3", "shop/x")).unwrap().address.octets()[3], 4);
    }

    #[test]
    fn a_workload_or_a_container_that_runs_already_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap()).unwrap();
        registry.begin(endpoint("c1", "shop/web")).unwrap();
        let error = registry.begin(endpoint("c2", "shop/web")).unwrap_err().to_string();
        assert!(error.contains("shop/web") && error.contains("c1"), "{error}");
        assert!(registry.begin(endpoint("c1", "shop/other")).is_err());
    }

    #[test]
    fn a_network_namespace_has_one_workload_and_the_refusal_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap()).unwrap();
        let first = registry.begin(endpoint("c1", "shop/web")).unwrap();
        // By another path, of another container or on another interface: it is the same namespace.
        for (container, ifname) in [("c2", "eth0"), ("c1", "eth1")] {
            let second = Endpoint {
                ifname: ifname.into(),
                netns_id: first.netns_id,
                netns: "/proc/7/ns/net".into(),
                ..endpoint(container, "shop/pay")
            };
            let error = registry.begin(second).unwrap_err().to_string();
            for word in ["/proc/7/ns/net", "shop/web", "c1", "eth0"] {
                assert!(error.contains(word), "{error}");
            }
        }
        assert_eq!(registry.iter().count(), 1);
    }

    #[test]
    fn a_namespace_that_only_got_the_number_of_one_that_is_gone_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap()).unwrap();
        let gone = registry.begin(endpoint("c1", "shop/web")).unwrap();
        let reused = Endpoint { netns_id: gone.netns_id, netns_cookie: 8, ..endpoint("c2", "shop/pay") };
        assert!(registry.begin(reused).is_ok());
    }

    #[test]
    fn the_one_file_of_an_earlier_release_becomes_a_file_for_each_pod() {
        let dir = tempfile::tempdir().unwrap();
        let cidr = "10.1.1.0/24".parse().unwrap();
        let mut one = serde_json::to_value(Endpoint {
            address: Ipv4Addr::new(10, 1, 1, 2),
            host_interface: "ism01234567".into(),
            ifindex: 9,
            ready: true,
            ..endpoint("c1", "shop/web")
        })
        .unwrap();
        // As it was written before these were known.
        for field in ["network", "chained", "gateways", "host_ports", "mtu"] {
            one.as_object_mut().unwrap().remove(field);
        }
        let old = serde_json::json!({ "last_address": "10.1.1.4", "endpoints": [one] });
        std::fs::write(dir.path().join(OLD_FILE), old.to_string()).unwrap();
        let mut registry = Registry::open(dir.path(), cidr).unwrap();
        assert!(!dir.path().join(OLD_FILE).exists());
        let web = registry.by_workload(&NamespacedName::new("shop", "web")).unwrap().clone();
        assert_eq!((web.host_interface.as_str(), web.mtu, web.chained), ("ism01234567", MTU, false));
        assert_eq!(registry.begin(endpoint("c2", "shop/pay")).unwrap().address.octets()[3], 5);
        assert_eq!(Registry::open(dir.path(), cidr).unwrap().iter().count(), 2);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cidr = "10.1.1.0/24".parse().unwrap();
        let mut registry = Registry::open(dir.path(), cidr).unwrap();
        let key = registry.begin(endpoint("c1", "shop/web")).unwrap().key();
        let path = registry.path(&key);
        std::fs::write(&path, "{").unwrap();
        let error = Registry::open(dir.path(), cidr).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("damaged"), "{error}");
    }

    #[test]
    fn host_ports_addresses_and_interfaces_have_one_pod() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap()).unwrap();
        let port = |address: Option<&str>| HostPort {
            address: address.map(|text| text.parse().unwrap()),
            port: 8080,
            container_port: 80,
            protocol: 6,
        };
        let with = |ports: Vec<HostPort>, endpoint: Endpoint| Endpoint { host_ports: ports, ..endpoint };
        let web = with(vec![port(Some("192.0.2.1"))], endpoint("c1", "shop/web"));
        let web = registry.begin(web).unwrap();
        let error = registry.begin(with(vec![port(None)], endpoint("c2", "shop/pay"))).unwrap_err();
        assert!(error.to_string().contains("shop/web"), "{error}");
        assert!(registry.begin(with(vec![port(Some("192.0.2.2"))], endpoint("c2", "shop/pay"))).is_ok());
        let chained = Endpoint {
            chained: true,
            address: web.address,
            host_interface: "veth1".into(),
            ..endpoint("c3", "shop/x")
        };
        assert!(matches!(registry.begin(chained.clone()), Err(RegistryError::AddressTaken { .. })));
        let address = Ipv4Addr::new(10, 1, 1, 99);
        let same_link = Endpoint { address, host_interface: web.host_interface, ..chained.clone() };
        assert!(matches!(registry.begin(same_link), Err(RegistryError::InterfaceTaken { .. })));
        assert_eq!(registry.begin(Endpoint { address, ..chained }).unwrap().address, address);
    }

    #[test]
    fn interface_names_fit_and_differ() {
        let name = |container: &str| {
            host_interface(&EndpointKey { container_id: container.into(), ifname: "eth0".into() })
        };
        assert_eq!(name("c1").len(), 15);
        assert_eq!(name("c1"), name("c1"));
        assert_ne!(name("c1"), name("c2"));
    }
}
