//! Making and unmaking pods. Whatever fails half-way is unmade.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};

use rand::Rng;

use super::{
    Endpoint, EndpointKey, HostNet, HostPort, LinkError, Netns, NetnsError, PodLink, RegistryError,
    SharedRegistry, beside,
    link::{obstacle_in_pod, remove_in_pod, set_up_pod},
    sysctl::{SysctlError, prepare_link, prepare_pod},
};
use crate::{
    cni_plugin::PreviousError,
    desired::{Pod, PodAddresses},
    dns::ClusterDnsArgs,
    engine::Engine,
    kernel::Grace,
    maps::MapError,
    tunnel,
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
    #[error(transparent)]
    Previous(#[from] PreviousError),
    #[error(
        "the plugin before this one gave the pod {address}, which is not of this node's slice {slices}: have its IPAM \
         give addresses of the slice"
    )]
    Foreign { address: IpAddr, slices: String },
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

    pub(crate) fn opened(&self) -> Arc<Netns> {
        self.opened.clone()
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
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
    pub(crate) grace: Grace,
    /// Takes some of what a frame has room for.
    pub(crate) tunnel: tunnel::Mode,
    /// Where the node's own interface says too much.
    pub(crate) underlay_mtu: Option<u32>,
    /// Of the node: what it calls its pods from.
    pub(crate) addresses: PodAddresses,
    /// The node's slice.
    pub(crate) slice: Ipv4Net,
    /// The node's slices, if its pods have IPv6.
    pub(crate) slices: Option<(Ipv4Net, Ipv6Net)>,
    /// Who answers names of services, if this node does: for pods' `resolv.conf`.
    pub(crate) names: Option<ClusterDnsArgs>,
}

impl Creator {
    /// Remembers a pod, after having looked whether its namespace is free for it. Nothing is changed in there.
    pub(crate) async fn reserve(
        &self,
        key: EndpointKey,
        workload: NamespacedName,
        netns: &PodNetns,
        network: String,
        host_ports: Vec<HostPort>,
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
            network,
            chained: false,
            gateways: Vec::new(),
            host_ports,
            mtu: self.tunnel.inner_mtu(self.underlay_mtu().await?),
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

    async fn underlay_mtu(&self) -> Result<u32, LinkError> {
        match self.underlay_mtu {
            Some(told) => Ok(told),
            None => self.host.uplink_mtu(self.addresses.v4).await,
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
            mtu: endpoint.mtu,
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
        self.engine.lead_ports(endpoint.workload.clone(), ports_of(&endpoint));
        self.engine.add_pod(endpoint.workload.clone(), pod_of(&endpoint))?;
        Ok(endpoint)
    }

    /// Unmakes a pod as far as it was made; what is gone already is fine. The kernel forgets it first, so that nothing of
    /// it passes while the rest goes. What can't be removed is logged, and then the pod stays remembered, so that it is
    /// tried again: false.
    pub(crate) async fn remove(&self, endpoint: &Endpoint) -> bool {
        let of = endpoint.workload.to_string();
        let mut all_gone = true;
        if let Err(error) = self.engine.remove_pod(&endpoint.workload) {
            tracing::error!(workload = of, %error, "the pod's entries are still in the kernel");
            all_gone = false;
        }
        // What another plugin has made is its own to remove. Until then the programs keep the interface closed: they are
        // detached when it is gone.
        if !endpoint.chained {
            all_gone &= self.remove_link(endpoint).await;
        }
        if all_gone && let Err(error) = self.registry.lock().remove(&endpoint.key()) {
            tracing::error!(workload = of, %error, "the pod is still remembered");
            all_gone = false;
        }
        if endpoint.chained {
            self.tell_gateways();
        }
        if !all_gone {
            let known = self.registry.lock().get(&endpoint.key()).cloned();
            if let Some(known) = known.filter(|known| known.ready)
                && let Err(error) = self.registry.lock().update(Endpoint { ready: false, ..known })
            {
                tracing::error!(workload = of, %error, "that the pod is to go is not remembered");
            }
        }
        all_gone
    }

    async fn remove_link(&self, endpoint: &Endpoint) -> bool {
        let of = endpoint.workload.to_string();
        let short = self.grace.shorten();
        let removed = self.host.remove(&endpoint.host_interface).await;
        drop(short);
        if let Err(error) = &removed {
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
        if removed.is_ok()
            && endpoint.ifindex != 0
            && let Err(error) = self.engine.detach(&endpoint.host_interface, endpoint.ifindex)
        {
            tracing::warn!(workload = of, %error, "the pod's programs are still pinned");
        }
        removed.is_ok()
    }

    /// Forgets programs on interfaces that are gone. Those on others stay: an interface that another plugin has not
    /// removed yet is to have no traffic once its pod is gone.
    pub(crate) async fn sweep_programs(&self) -> Result<(), CreateError> {
        let known: std::collections::BTreeSet<u32> =
            self.registry.lock().iter().map(|endpoint| endpoint.ifindex).collect();
        for ifindex in self.engine.attached()? {
            if !known.contains(&ifindex) && !self.host.has_index(ifindex).await? {
                self.engine.detach("", ifindex)?;
            }
        }
        Ok(())
    }
}

/// What the maps are about.
pub(crate) fn pod_of(endpoint: &Endpoint) -> Pod {
    Pod { addresses: endpoint.addresses(), ifindex: endpoint.ifindex, netns_cookie: endpoint.netns_cookie }
}

/// Ports of the node that are to lead to it.
pub(crate) fn ports_of(endpoint: &Endpoint) -> Vec<crate::subscribe::HostPort> {
    let each = endpoint.host_ports.iter().map(|mapped| crate::subscribe::HostPort {
        address: mapped.address.map(|address| address.to_canonical()),
        host_port: mapped.port,
        port: mapped.container_port,
        protocol: mapped.protocol,
    });
    each.collect()
}

/// Off the runtime's threads, because it waits for another one.
pub(super) async fn blocking<T: Send + 'static>(
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
