//! The pods of this node, as they are remembered on disk. The file is written before the network is touched, so
//! that whatever an agent that died half-way left behind is known by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::Ipv4Net;
use mesh_model::resource::NamespacedName;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{IpamError, allocate, netns::NetnsId};
use crate::{desired::PodAddresses, persist};

const FILE: &str = "endpoints.json";

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
}

/// What CNI knows an endpoint by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct EndpointKey {
    pub container_id: String,
    pub ifname: String,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub container_id: String,
    /// Inside the pod.
    pub ifname: String,
    pub workload: NamespacedName,
    /// Path as the runtime gave it.
    pub netns: String,
    pub netns_id: NetnsId,
    pub netns_cookie: u64,
    pub address: Ipv4Addr,
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    pub host_interface: String,
    pub host_mac: [u8; 6],
    pub pod_mac: [u8; 6],
    /// Of the host's end; 0 until it is made.
    pub ifindex: u32,
    /// ADD has returned.
    pub ready: bool,
}

impl Endpoint {
    /// What CNI knows it by.
    pub fn key(&self) -> EndpointKey {
        EndpointKey { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// Its addresses, as everyone is told them.
    pub fn addresses(&self) -> PodAddresses {
        PodAddresses { v4: self.address, v6: self.address6 }
    }

    /// Whether it is in this very network namespace. The number of one that is gone may come back with another, but
    /// its cookie does not until the node starts anew.
    pub fn is_in(&self, netns: NetnsId, cookie: u64) -> bool {
        self.netns_id == netns && self.netns_cookie == cookie
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    last_address: Option<Ipv4Addr>,
    endpoints: Vec<Endpoint>,
}

/// All pods of this node. Every change is on disk when the call returns.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    cidr: Ipv4Net,
    last_address: Option<Ipv4Addr>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
}

impl Registry {
    /// Reads what the agent before this one knew.
    ///
    /// # Errors
    /// The file is there and can't be used.
    pub fn open(dir: &Path, cidr: Ipv4Net) -> Result<Self, RegistryError> {
        let path = dir.join(FILE);
        let shown = path.display().to_string();
        let bytes = persist::read_optional(&path)
            .map_err(|error| RegistryError::Io { path: shown.clone(), error })?;
        let stored = match bytes {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| RegistryError::Damaged { path: shown, error })?,
            None => Stored::default(),
        };
        let endpoints = stored.endpoints.into_iter().map(|endpoint| (endpoint.key(), endpoint)).collect();
        Ok(Self { path, cidr, last_address: stored.last_address, endpoints })
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

    /// Gives a new pod an address and remembers it. `address`, `host_interface` and `ifindex` of `endpoint` are
    /// filled in here.
    ///
    /// # Errors
    /// The workload, the container or the network namespace is taken, no address is free, or the disk can't be written.
    pub fn begin(&mut self, mut endpoint: Endpoint) -> Result<Endpoint, RegistryError> {
        let key = endpoint.key();
        if let Some(known) = self.endpoints.get(&key) {
            return Err(RegistryError::Mismatch {
                container_id: key.container_id,
                ifname: key.ifname,
                workload: known.workload.clone(),
            });
        }
        if let Some(known) = self.by_workload(&endpoint.workload) {
            let container_id = known.container_id.clone();
            return Err(RegistryError::Taken { workload: endpoint.workload, container_id });
        }
        if let Some(known) = self.iter().find(|known| known.is_in(endpoint.netns_id, endpoint.netns_cookie)) {
            return Err(RegistryError::Occupied {
                netns: endpoint.netns,
                workload: known.workload.clone(),
                container_id: known.container_id.clone(),
                ifname: known.ifname.clone(),
            });
        }
        let used: BTreeSet<Ipv4Addr> = self.iter().map(|known| known.address).collect();
        endpoint.address = allocate(self.cidr, &used, self.last_address)?;
        endpoint.host_interface = host_interface(&key);
        endpoint.ifindex = 0;
        endpoint.ready = false;
        let last = self.last_address.replace(endpoint.address);
        self.endpoints.insert(key.clone(), endpoint.clone());
        self.save().inspect_err(|_| {
            self.last_address = last;
            self.endpoints.remove(&key);
        })?;
        Ok(endpoint)
    }

    /// Remembers what became of a pod.
    ///
    /// # Errors
    /// The disk can't be written.
    pub fn update(&mut self, endpoint: Endpoint) -> Result<(), RegistryError> {
        self.endpoints.insert(endpoint.key(), endpoint);
        self.save()
    }

    /// Forgets a pod, and frees its address.
    ///
    /// # Errors
    /// The disk can't be written.
    pub fn remove(&mut self, key: &EndpointKey) -> Result<Option<Endpoint>, RegistryError> {
        let removed = self.endpoints.remove(key);
        if removed.is_some() {
            self.save()?;
        }
        Ok(removed)
    }

    fn save(&self) -> Result<(), RegistryError> {
        let stored =
            Stored { last_address: self.last_address, endpoints: self.endpoints.values().cloned().collect() };
        let shown = self.path.display().to_string();
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|error| RegistryError::Damaged { path: shown.clone(), error })?;
        persist::write_private(&self.path, &bytes).map_err(|error| RegistryError::Io { path: shown, error })
    }
}

/// The registry as its users share it. A lock is never held while waiting for anything but the disk.
#[derive(Debug, Clone)]
pub struct SharedRegistry(Arc<Mutex<Registry>>);

impl SharedRegistry {
    /// Shares it.
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Takes it. Every change is complete before anything can panic, so a poisoned lock is as good as any.
    pub fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the host's end of a pod's link: `ism` and 8 hexadecimal digits, 11 of the 15 characters that
/// Linux allows. The same for the same pod always, so it can be removed without a memory of it.
pub fn host_interface(key: &EndpointKey) -> String {
    let bytes = key.container_id.bytes().chain([0]).chain(key.ifname.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("ism{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
        }
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
    fn interface_names_fit_and_differ() {
        let name = |container: &str| {
            host_interface(&EndpointKey { container_id: container.into(), ifname: "eth0".into() })
        };
        assert_eq!(name("c1").len(), 11);
        assert_eq!(name("c1"), name("c1"));
        assert_ne!(name("c1"), name("c2"));
    }
}
