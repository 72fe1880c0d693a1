//! Making and unmaking pods. Whatever fails half-way is unmade.

use std::{net::Ipv4Addr, sync::Arc};

use rand::Rng;

use super::{
    Endpoint, EndpointKey, HostNet, LinkError, Netns, NetnsError, PodLink, RegistryError, SharedRegistry,
    link::{remove_in_pod, set_up_pod},
    sysctl::{SysctlError, prepare_link, prepare_pod},
};
use crate::{desired::Pod, engine::Engine, maps::MapError};
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
}

/// All that making a pod takes.
#[derive(Clone)]
pub(crate) struct Creator {
    pub(crate) host: HostNet,
    pub(crate) engine: Engine,
    pub(crate) registry: SharedRegistry,
    /// Of the node: what it calls its pods from.
    pub(crate) address: Ipv4Addr,
}

impl Creator {
    /// Makes a pod's link with programs attached. The pod has no traffic yet.
    pub(crate) async fn create(
        &self,
        key: EndpointKey,
        workload: NamespacedName,
        path: &str,
    ) -> Result<Endpoint, CreateError> {
        let netns = Arc::new(Netns::open(path)?);
        let opened = netns.clone();
        let cookie = blocking(move || opened.cookie()).await?;
        let endpoint = Endpoint {
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
            workload,
            netns: path.to_owned(),
            netns_id: netns.id(),
            netns_cookie: cookie,
            address: Ipv4Addr::UNSPECIFIED,
            host_interface: String::new(),
            host_mac: random_mac(),
            pod_mac: random_mac(),
            ifindex: 0,
            ready: false,
        };
        let endpoint = self.registry.lock().begin(endpoint)?;
        match self.connect(endpoint.clone(), netns).await {
            Ok(endpoint) => Ok(endpoint),
            Err(error) => {
                self.remove(&endpoint).await;
                Err(error)
            }
        }
    }

    async fn connect(&self, mut endpoint: Endpoint, netns: Arc<Netns>) -> Result<Endpoint, CreateError> {
        let link = PodLink {
            host_name: endpoint.host_interface.clone(),
            pod_name: endpoint.ifname.clone(),
            host_mac: endpoint.host_mac,
            pod_mac: endpoint.pod_mac,
            address: endpoint.address,
        };
        // Left behind by an agent that died here.
        self.host.remove(&link.host_name).await?;
        let inside = netns.clone();
        blocking(move || inside.run(prepare_pod)).await??;
        endpoint.ifindex = self.host.create(&link, netns.as_raw_fd()).await?;
        prepare_link(&link.host_name)?;
        // From here on its packets are judged, and, without an entry for it, dropped.
        self.engine.attach(&link.host_name, endpoint.ifindex)?;
        self.registry.lock().update(endpoint.clone())?;
        let (inside, of_pod) = (netns.clone(), link.clone());
        blocking(move || inside.run(move || set_up_pod(&of_pod))).await??;
        self.host.open(&link, endpoint.ifindex, self.address).await?;
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
            let ifname = endpoint.ifname.clone();
            if let Ok(Err(error)) = blocking(move || netns.run(move || remove_in_pod(&ifname))).await {
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
    Pod { address: endpoint.address, ifindex: endpoint.ifindex, netns_cookie: endpoint.netns_cookie }
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
