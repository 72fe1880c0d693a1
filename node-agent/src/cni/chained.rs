//! Pods that another plugin of the chain (`ptp`, `bridge`) has made: their interface is found, guarded and never changed.

use std::net::IpAddr;

use mesh_model::resource::NamespacedName;

use super::{
    Creator, Endpoint, EndpointKey, HostPort,
    create::{CreateError, PodNetns, blocking},
    link::{PairEnd, check_pod, pair_in_pod},
};
use crate::{cni_plugin::PreviousResult, desired::PodAddresses};

/// A pod's interface as the plugin before has left it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    host: PairEnd,
    pod: PairEnd,
    addresses: PodAddresses,
    gateways: Vec<IpAddr>,
}

impl Found {
    /// Whether this is what a pod is known as.
    pub(crate) fn is(&self, known: &Endpoint) -> bool {
        known.chained && known.addresses() == self.addresses && known.ifindex == self.host.index
    }

    /// The pod, before anything is done with it.
    pub(crate) fn endpoint(
        self,
        key: EndpointKey,
        workload: NamespacedName,
        netns: &PodNetns,
        network: String,
        host_ports: Vec<HostPort>,
    ) -> Endpoint {
        Endpoint {
            container_id: key.container_id,
            ifname: key.ifname,
            workload,
            netns: netns.path().to_owned(),
            netns_id: netns.opened().id(),
            netns_cookie: netns.cookie(),
            address: self.addresses.v4,
            address6: self.addresses.v6,
            host_interface: self.host.name,
            host_mac: self.host.mac,
            pod_mac: self.pod.mac,
            // Until the programs are attached.
            ifindex: 0,
            ready: false,
            network,
            chained: true,
            gateways: self.gateways,
            host_ports,
            mtu: self.pod.mtu,
        }
    }
}

impl Creator {
    /// Looks for the interface that `prevResult` tells of.
    pub(crate) async fn find_chained(
        &self,
        key: &EndpointKey,
        netns: &PodNetns,
        previous: &[u8],
    ) -> Result<Found, CreateError> {
        let PreviousResult { addresses, gateways: named } = PreviousResult::parse(previous, &key.ifname)?;
        let not_free = |what: String| CreateError::NotFree { netns: netns.path().to_owned(), what };
        if let Some(foreign) = addresses.iter().find(|address| !self.is_own(*address)) {
            let slices: Vec<_> = self.own_slices().map(|slice| slice.to_string()).collect();
            return Err(CreateError::Foreign { address: foreign, slices: slices.join(" and ") });
        }
        let (inside, ifname) = (netns.opened(), key.ifname.clone());
        let pod = blocking(move || inside.run(move || pair_in_pod(&ifname))).await??;
        let no_pair = || not_free(format!("has no interface {} that is an end of a veth pair", key.ifname));
        let pod = pod.ok_or_else(no_pair)?;
        // An index says nothing without its namespace: the other end must be here, and name this one.
        let host = self.host.end_of_pair(pod.other, pod.index).await?;
        let host = host.ok_or_else(|| {
            not_free(format!("has an interface {} whose other end is not on this node", key.ifname))
        })?;
        let (inside, ifname) = (netns.opened(), key.ifname.clone());
        let wrong = blocking(move || inside.run(move || check_pod(&ifname, addresses, true))).await??;
        // What the plugin calls a gateway may be a router beyond the node.
        let mut gateways = Vec::new();
        for address in named {
            if self.host.has_address(address).await? {
                gateways.push(address);
            }
        }
        match wrong {
            None => Ok(Found { host, pod, addresses, gateways }),
            Some(what) => Err(not_free(format!("is not as prevResult says: {what}"))),
        }
    }

    /// Guards the interface: from here on its packets are judged, and, until its policy is there, dropped.
    pub(crate) async fn guard(&self, mut endpoint: Endpoint, found: &Found) -> Result<Endpoint, CreateError> {
        endpoint.ifindex = found.host.index;
        self.registry.lock().update(endpoint.clone())?;
        self.tell_gateways();
        self.engine.attach(&endpoint.host_interface, endpoint.ifindex)?;
        self.engine.lead_ports(endpoint.workload.clone(), super::ports_of(&endpoint));
        self.engine.add_pod(endpoint.workload.clone(), super::pod_of(&endpoint))?;
        Ok(endpoint)
    }

    /// The node speaks to these pods from other addresses than [`Creator::addresses`].
    pub(crate) fn tell_gateways(&self) {
        let gateways = self.registry.lock().gateways();
        self.engine.set_gateways(gateways);
    }

    fn own_slices(&self) -> impl Iterator<Item = ipnet::IpNet> {
        let six = self.slices.map(|(_, six)| six.into());
        [self.slice.into()].into_iter().chain(six)
    }

    /// The control plane takes from a node only addresses of its slice.
    fn is_own(&self, address: IpAddr) -> bool {
        self.own_slices().any(|slice| slice.contains(&address))
    }
}
