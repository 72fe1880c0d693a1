//! Making and unmaking pods. Whatever fails half-way is unmade.

use std::{net::Ipv4Addr, sync::Arc};

use ipnet::{Ipv4Net, Ipv6Net};

use rand::Rng;

use super::{
    Endpoint, EndpointKey, HostNet, LinkError, Netns, NetnsError, PodLink, RegistryError, SharedRegistry,
    beside,
    link::{obstacle_in_pod, remove_in_pod, set_up_pod},
    sysctl::{SysctlError, prepare_link, prepare_pod},
};
use crate::{
    desired::{Pod, PodAddresses},
    engine::Engine,
    maps::MapError,
};
use mesh_model::resource::NamespacedName;
use thiserror::Error;

/// Why a pod can't be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("network namespace {netns} {what}; it is left as it is")]
    NotFree { netns: String, what: String },
}

/// The network namespace that an ADD is about.
pub(crate) struct PodNetns {
    path: String,
    opened: Arc<Netns>,
    cookie: u64,
}

impl PodNetns {
    /// Opens it; it lives at least as long as this.
    pub(crate) async fn open(path: &str) -> Result<Self, NetnsError> {
        let opened = Arc::new(Netns::open(path)?);
        let inside = opened.clone();
        let cookie = blocking(move || inside.cookie()).await?;
        Ok(Self { path: path.to_owned(), opened, cookie })
    }

    /// Whether it is the one that a pod was made in.
    pub(crate) fn is_of(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_in(self.opened.id(), self.cookie)
    }

    /// Whether it has the number that the namespace of a pod had.
    pub(crate) fn has_number_of(&self, endpoint: &Endpoint) -> bool {
        endpoint.netns_id == self.opened.id()
    }

    /// As the runtime named it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// All that making a pod takes.
#[derive(Clone)]
pub(crate) struct Creator {
    pub(crate) host: HostNet,
    pub(crate) engine: Engine,
    pub(crate) registry: SharedRegistry,
    /// Of the node: what it calls its pods from.
    pub(crate) addresses: PodAddresses,
    /// The node's slices, if its pods have IPv6.
    pub(crate) slices: Option<(Ipv4Net, Ipv6Net)>,
}

impl Creator {
    /// Remembers a pod, after having looked whether its namespace is free for it. Nothing is changed in there.
    pub(crate) async fn reserve(
        &self,
        key: EndpointKey,
        workload: NamespacedName,
        netns: &PodNetns,
    ) -> Result<Endpoint, CreateError> {
        let endpoint = Endpoint {
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
            workload,
            netns: netns.path.clone(),
            netns_id: netns.opened.id(),
            netns_cookie: netns.cookie,
            address: Ipv4Addr::UNSPECIFIED,
            address6: None,
            host_interface: String::new(),
            host_mac: random_mac(),
            pod_mac: random_mac(),
            ifindex: 0,
            ready: false,
        };
        let mut endpoint = self.registry.lock().begin(endpoint)?;
        endpoint.address6 = self.slices.and_then(|(v4, v6)| beside(endpoint.address, v4, v6));
        match self.look_inside(&endpoint, netns).await {
            Ok(()) => Ok(endpoint),
            Err(error) => {
                self.registry.lock().remove(&key)?;
                Err(error)
            }
        }
    }

    async fn look_inside(&self, endpoint: &Endpoint, netns: &PodNetns) -> Result<(), CreateError> {
        // Left behind for this container by an agent that died, and with it goes its end in the pod.
        self.host.remove(&endpoint.host_interface).await?;
        let (inside, ifname) = (netns.opened.clone(), endpoint.ifname.clone());
        match blocking(move || inside.run(move || obstacle_in_pod(&ifname))).await?? {
            None => Ok(()),
            Some(what) => Err(CreateError::NotFree { netns: netns.path.clone(), what }),
        }
    }

    /// Whether the link of a pod is still there: it goes with the pod's namespace.
    pub(crate) async fn is_there(&self, endpoint: &Endpoint) -> Result<bool, LinkError> {
        let index = self.host.index(&endpoint.host_interface).await?;
        Ok(endpoint.ifindex != 0 && index == Some(endpoint.ifindex))
    }

    /// Makes the link of a reserved pod with programs attached. The pod has no traffic yet. If it fails, what there is
    /// of it is for the caller to [remove](Self::remove).
    pub(crate) async fn connect(
        &self,
        mut endpoint: Endpoint,
        netns: &PodNetns,
    ) -> Result<Endpoint, CreateError> {
        let netns = netns.opened.clone();
        let link = PodLink {
            host_name: endpoint.host_interface.clone(),
            pod_name: endpoint.ifname.clone(),
            host_mac: endpoint.host_mac,
            pod_mac: endpoint.pod_mac,
            addresses: endpoint.addresses(),
        };
        let inside = netns.clone();
        let has_ipv6 = endpoint.address6.is_some();
        blocking(move || inside.run(move || prepare_pod(has_ipv6))).await??;
        endpoint.ifindex = self.host.create(&link, netns.as_raw_fd()).await?;
        prepare_link(&link.host_name, has_ipv6)?;
        // From here on its packets are judged, and, without an entry for it, dropped.
        self.engine.attach(&link.host_name, endpoint.ifindex)?;
        self.registry.lock().update(endpoint.clone())?;
        let (inside, of_pod) = (netns.clone(), link.clone());
        blocking(move || inside.run(move || set_up_pod(&of_pod))).await??;
        self.host.open(&link, endpoint.ifindex, self.addresses).await?;
        self.engine.add_pod(endpoint.workload.clone(), pod_of(&endpoint))?;
        Ok(endpoint)
    }

    /// Unmakes a pod as far as it was made; what is gone already is fine, and what can't be removed is logged. The
    /// kernel forgets it first, so that nothing of it passes while the rest goes.
    pub(crate) async fn remove(&self, endpoint: &Endpoint) {
        let of = endpoint.workload.to_string();
        if let Err(error) = self.engine.remove_pod(&endpoint.workload) {
            tracing::error!(workload = of, %error, "the pod's entries are still in the kernel");
        }
        if let Err(error) = self.host.remove(&endpoint.host_interface).await {
            tracing::warn!(workload = of, %error, "the pod's link is still there");
        }
        // The other end went with it, unless it was the host's end that was missing.
        if let Ok(netns) = Netns::open(&endpoint.netns)
            && netns.id() == endpoint.netns_id
        {
            let (ifname, mac) = (endpoint.ifname.clone(), endpoint.pod_mac);
            if let Ok(Err(error)) = blocking(move || netns.run(move || remove_in_pod(&ifname, mac))).await {
                tracing::debug!(workload = of, %error, "the pod's interface is still there");
            }
        }
        if endpoint.ifindex != 0
            && let Err(error) = self.engine.detach(&endpoint.host_interface, endpoint.ifindex)
        {
            tracing::warn!(workload = of, %error, "the pod's programs are still pinned");
        }
        if let Err(error) = self.registry.lock().remove(&endpoint.key()) {
            tracing::error!(workload = of, %error, "the pod is still remembered");
        }
    }
}

/// What the maps are about.
pub(crate) fn pod_of(endpoint: &Endpoint) -> Pod {
    Pod { addresses: endpoint.addresses(), ifindex: endpoint.ifindex, netns_cookie: endpoint.netns_cookie }
}

/// Off the runtime's threads, because it waits for another one.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send + 'static,
) -> Result<T, NetnsError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(NetnsError::Enter(std::io::Error::other(error))))
}

/// Locally administered, unicast.
fn random_mac() -> [u8; 6] {
    let mut mac: [u8; 6] = rand::rng().random();
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}
