//! Routes to the pods of other nodes: by their underlay addresses (direct routing), or into the tunnel.

pub mod to_itself;
mod to_nodes;
pub mod to_proxy;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use crate::{cni::HostNet, desired::PodAddresses, engine::Engine, subscribe::Resources};

/// `rtm_protocol` of every route that the agent makes: only those are ever changed or removed. Free in
/// `/etc/iproute2/rt_protos`.
pub const PROTOCOL: u8 = 77;
/// Metric of the routes that say that a slice is unreachable: any other route to the slice, a bridge's for instance, is
/// better.
const LAST_RESORT: u32 = u32::MAX;
/// After a route that the kernel refused, for instance because its gateway is not on a link yet.
const RETRY: Duration = Duration::from_secs(5);

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the node that has the pods.
    Gateway(IpAddr),
    /// Into the tunnel: the device with this index.
    Device(u32),
}

/// Prefix to way.
pub type Routes = BTreeMap<IpNet, Way>;

/// The routes that a node is to have; of IPv6 only if it has IPv6 itself. With a tunnel, they lead into it, but for those to
/// nodes that say that they have none. PURE.
pub fn desired(resources: &Resources, node: &str, has_ipv6: bool, tunnel: Option<u32>) -> Routes {
    let others = resources.nodes.iter().filter(|(name, _)| *name != node);
    let mut routes = Routes::new();
    for (_, other) in others {
        for cidr in &other.pod_cidrs {
            let gateway = match cidr {
                IpNet::V4(_) => Some(IpAddr::V4(other.address)),
                IpNet::V6(_) => other.address6.filter(|_| has_ipv6).map(IpAddr::V6),
            };
            let way = match tunnel.filter(|_| other.has_tunnel()) {
                Some(device) if cidr.addr().is_ipv4() || has_ipv6 => Some(Way::Device(device)),
                Some(_) => None,
                None => gateway.map(Way::Gateway),
            };
            routes.extend(way.map(|way| (*cidr, way)));
        }
    }
    routes
}

/// All that leads to other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// To their pods.
    pub pods: Routes,
    /// Their own addresses, to which packets of this node's pods go through the tunnel; none without one.
    pub nodes: BTreeSet<IpAddr>,
}

/// The addresses of other nodes that pods reach through the tunnel, see [`to_nodes`]. PURE.
fn nodes(resources: &Resources, node: &str, has_ipv6: bool) -> BTreeSet<IpAddr> {
    let others = resources.nodes.iter().filter(|(name, other)| *name != node && other.has_tunnel());
    let each = others.flat_map(|(_, other)| {
        [Some(IpAddr::V4(other.address)), other.address6.filter(|_| has_ipv6).map(IpAddr::V6)]
    });
    each.flatten().collect()
}

/// What to remove and what to add, in this order of the pair; a changed gateway is an addition that replaces. PURE.
pub fn diff(current: &Routes, desired: &Routes) -> (Vec<IpNet>, Routes) {
    let gone = current.keys().filter(|net| !desired.contains_key(net)).copied().collect();
    let new = desired.iter().filter(|(net, way)| current.get(net) != Some(way));
    (gone, new.map(|(net, way)| (*net, *way)).collect())
}

/// Keeps the routes of one node.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct RouteKeeper {
    pub node: String,
    /// What the node itself calls pods from.
    pub addresses: PodAddresses,
    /// The node's own slices: what no pod has is unreachable, so that callers of a pod that is gone hear it at once, and
    /// packets to it never leave the node again.
    pub own_pods: Vec<IpNet>,
    /// The device of the tunnel, if there is one.
    pub tunnel: Option<u32>,
}

impl RouteKeeper {
    /// What is to lead to the other nodes. PURE.
    pub fn wanted(&self, resources: &Resources) -> Wanted {
        let has_ipv6 = self.addresses.v6.is_some();
        let pods = desired(resources, &self.node, has_ipv6, self.tunnel);
        let tunnelled = self.tunnel.map(|_| nodes(resources, &self.node, has_ipv6));
        Wanted { pods, nodes: tunnelled.unwrap_or_default() }
    }

    /// Keeps the routes as they are to be, for ever. Stop it by dropping the future.
    pub async fn keep_for_ever(self, host: HostNet, engine: Engine) {
        let mut changes = engine.changes();
        let mut held: Option<Wanted> = None;
        loop {
            changes.borrow_and_update();
            let wanted = engine.resources(|resources| self.wanted(resources));
            if held.as_ref() != Some(&wanted) {
                match self.synchronise(&host, &wanted).await {
                    Ok(()) => held = Some(wanted),
                    Err(error) => {
                        tracing::warn!(%error, "routes to other nodes are incomplete; trying again in {RETRY:?}");
                        held = None;
                    }
                }
            }
            let changed = changes.changed();
            if held.is_some() {
                if changed.await.is_err() {
                    return;
                }
            } else if let Ok(Err(_)) = tokio::time::timeout(RETRY, changed).await {
                return;
            }
        }
    }

    /// Makes what is there what is wanted: what is new first.
    ///
    /// # Errors
    /// What the kernel refused, once all the rest is done.
    pub async fn synchronise(&self, host: &HostNet, wanted: &Wanted) -> Result<(), rtnetlink::Error> {
        let handle = host.handle();
        for own in &self.own_pods {
            let unreachable = match own {
                IpNet::V4(own) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(own.network(), own.prefix_len())
                    .kind(RouteType::Unreachable)
                    .priority(LAST_RESORT)
                    .protocol(RouteProtocol::Other(PROTOCOL))
                    .build(),
                IpNet::V6(own) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(own.network(), own.prefix_len())
                    .kind(RouteType::Unreachable)
                    .priority(LAST_RESORT)
                    .protocol(RouteProtocol::Other(PROTOCOL))
                    .build(),
            };
            handle.route().add(unreachable).replace().execute().await?;
        }
        // As releases before made it: as good as any other.
        for route in ours(handle).await?.into_iter().filter(is_preferred_refusal) {
            handle.route().del(route).execute().await?;
        }
        let to_pods = synchronise(handle, &wanted.pods, self.addresses).await;
        let to_nodes = match self.tunnel {
            Some(device) => to_nodes::synchronise(handle, &self.own_pods, &wanted.nodes, device).await,
            None => to_nodes::remove(handle).await,
        };
        to_pods.and(to_nodes)
    }
}

/// Removes every route of ours, also those to pods of this node.
///
/// # Errors
/// What the kernel refused.
pub async fn remove_all(host: &HostNet) -> Result<(), rtnetlink::Error> {
    to_nodes::remove(host.handle()).await?;
    for route in ours(host.handle()).await? {
        host.handle().route().del(route).execute().await?;
    }
    Ok(())
}

async fn synchronise(handle: &Handle, wanted: &Routes, source: PodAddresses) -> Result<(), rtnetlink::Error> {
    let mut current = Routes::new();
    let mut messages = BTreeMap::new();
    for route in ours(handle).await? {
        if let Some((net, way)) = way(&route).filter(|_| !is_local(&route)) {
            current.insert(net, way);
            messages.insert(net, route);
        }
    }
    let (gone, new) = diff(&current, wanted);
    // One that is refused must not keep the others from being made.
    let mut result = Ok(());
    for (net, way) in new {
        let Some(route) = to(net, way, source) else { continue };
        if let Err(error) = handle.route().add(route).replace().execute().await {
            tracing::warn!(%net, ?way, %error, "route refused");
            result = Err(error);
        }
    }
    for net in gone {
        if let Some(route) = messages.remove(&net)
            && let Err(error) = handle.route().del(route).execute().await
            && !crate::cni::is_missing(&error)
        {
            result = Err(error);
        }
    }
    result
}

/// A route by a gateway of the same family, or by a device.
fn to(net: IpNet, way: Way, source: PodAddresses) -> Option<RouteMessage> {
    match net {
        IpNet::V4(net) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .pref_source(source.v4)
                .protocol(RouteProtocol::Other(PROTOCOL));
            match way {
                Way::Gateway(IpAddr::V4(gateway)) => Some(route.gateway(gateway).build()),
                Way::Gateway(IpAddr::V6(_)) => None,
                Way::Device(index) => Some(route.output_interface(index).scope(RouteScope::Link).build()),
            }
        }
        IpNet::V6(net) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .pref_source(source.v6?)
                .protocol(RouteProtocol::Other(PROTOCOL));
            match way {
                Way::Gateway(IpAddr::V6(gateway)) => Some(route.gateway(gateway).build()),
                Way::Gateway(IpAddr::V4(_)) => None,
                Way::Device(index) => Some(route.output_interface(index).build()),
            }
        }
    }
}

fn is_preferred_refusal(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Unreachable
        && !route.attributes.contains(&RouteAttribute::Priority(LAST_RESORT))
}

async fn ours(handle: &Handle) -> Result<Vec<RouteMessage>, rtnetlink::Error> {
    let mut all: Vec<RouteMessage> = Vec::new();
    for family in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let found: Vec<_> = handle.route().get(family).execute().try_collect().await?;
        all.extend(found);
    }
    Ok(all.into_iter().filter(|route| route.header.protocol == RouteProtocol::Other(PROTOCOL)).collect())
}

/// Prefix and way.
fn way(route: &RouteMessage) -> Option<(IpNet, Way)> {
    let (mut destination, mut gateway, mut device) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let net = IpNet::new(destination?, route.header.destination_prefix_length).ok()?;
    let way = match gateway {
        Some(gateway) => Way::Gateway(gateway),
        None => Way::Device(device?),
    };
    Some((net, way))
}

/// Whether it is a route to one of this node's own pods, or to those that are not there: [`HostNet`] keeps the first, and
/// nothing of the second changes.
fn is_local(route: &RouteMessage) -> bool {
    let whole = if route.header.address_family == AddressFamily::Inet6 { 128 } else { 32 };
    let by_gateway = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)));
    route.header.kind != RouteType::Unicast
        || (route.header.destination_prefix_length == whole && !by_gateway)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::NodeRoute;

    fn routes(list: &[(&str, &str)]) -> Routes {
        let way = |gateway: &str| Way::Gateway(gateway.parse().unwrap());
        list.iter().map(|(net, gateway)| (net.parse().unwrap(), way(gateway))).collect()
    }

    #[test]
    fn a_node_routes_to_all_others_and_not_to_itself() {
        let mut resources = Resources::default();
        for (name, last) in [("n1", 1u8), ("n2", 2)] {
            let pods = [format!("10.1.{last}.0/24"), format!("fd00:1::{last}00/120")];
            let node = NodeRoute {
                tunnel: None,
                addresses: Vec::new(),
                address: [192, 0, 2, last].into(),
                address6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())),
                pod_cidrs: pods.map(|net| net.parse().unwrap()).into(),
                zone: String::new(),
            };
            resources.nodes.insert(name.into(), node);
        }
        let both = routes(&[("10.1.2.0/24", "192.0.2.2"), ("fd00:1::200/120", "2001:db8::2")]);
        assert_eq!(desired(&resources, "n1", true, None), both);
        assert_eq!(desired(&resources, "n1", false, None), routes(&[("10.1.2.0/24", "192.0.2.2")]));
    }

    #[test]
    fn what_is_read_back_is_what_was_made_and_routes_to_own_pods_are_left_alone() {
        let source = PodAddresses { v4: [192, 0, 2, 1].into(), v6: Some("2001:db8::1".parse().unwrap()) };
        for (net, way_to) in [
            ("10.1.2.0/24", Way::Gateway([192, 0, 2, 2].into())),
            ("10.1.2.0/24", Way::Device(7)),
            ("fd00:1::200/120", Way::Gateway("2001:db8::2".parse().unwrap())),
            ("fd00:1::200/120", Way::Device(7)),
        ] {
            let net: IpNet = net.parse().unwrap();
            let route = to(net, way_to, source).unwrap();
            assert_eq!(way(&route), Some((net, way_to)));
            assert!(!is_local(&route), "{net}");
        }
        for own in ["10.1.1.2/32", "fd00:1::102/128"] {
            let route = to(own.parse().unwrap(), Way::Device(9), source).unwrap();
            assert!(is_local(&route), "{own}");
        }
        assert!(
            to("10.1.2.0/24".parse().unwrap(), Way::Gateway("2001:db8::2".parse().unwrap()), source)
                .is_none()
        );
    }

    #[test]
    fn pods_reach_other_nodes_through_the_tunnel_where_there_is_one() {
        let mut resources = Resources::default();
        for (name, last) in [("n1", 1u8), ("n2", 2)] {
            let node = NodeRoute {
                tunnel: None,
                addresses: Vec::new(),
                address: [192, 0, 2, last].into(),
                address6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())),
                pod_cidrs: vec![],
                zone: String::new(),
            };
            resources.nodes.insert(name.into(), node);
        }
        let v6 = Some("2001:db8::1".parse().unwrap());
        let keeper = |tunnel, v6| RouteKeeper {
            node: "n1".into(),
            addresses: PodAddresses { v4: [192, 0, 2, 1].into(), v6 },
            own_pods: vec![],
            tunnel,
        };
        let shown = |keeper: RouteKeeper| -> Vec<String> {
            keeper.wanted(&resources).nodes.iter().map(ToString::to_string).collect()
        };
        assert_eq!(shown(keeper(Some(7), v6)), ["192.0.2.2", "2001:db8::2"]);
        assert_eq!(shown(keeper(Some(7), None)), ["192.0.2.2"]);
        assert!(shown(keeper(None, v6)).is_empty());
    }

    #[test]
    fn a_changed_gateway_replaces_and_only_what_is_gone_is_removed() {
        let current = routes(&[("10.1.2.0/24", "192.0.2.2"), ("10.1.3.0/24", "192.0.2.3")]);
        let wanted = routes(&[("10.1.2.0/24", "192.0.2.9")]);
        let (gone, new) = diff(&current, &wanted);
        assert_eq!(gone, ["10.1.3.0/24".parse().unwrap()]);
        assert_eq!(new, wanted);
        assert_eq!(diff(&wanted, &wanted), (vec![], Routes::new()));
    }
}
