//! Routes to the pods of other nodes, by their underlay addresses (direct routing).

pub mod to_proxy;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
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

/// Prefix to gateway.
pub type Routes = BTreeMap<IpNet, IpAddr>;

/// The routes that a node is to have; of IPv6 only if it has IPv6 itself. PURE.
pub fn desired(resources: &Resources, node: &str, has_ipv6: bool) -> Routes {
    let others = resources.nodes.iter().filter(|(name, _)| *name != node);
    let mut routes = Routes::new();
    for (_, other) in others {
        for cidr in &other.pod_cidrs {
            let gateway = match cidr {
                IpNet::V4(_) => Some(IpAddr::V4(other.address)),
                IpNet::V6(_) => other.address6.filter(|_| has_ipv6).map(IpAddr::V6),
            };
            routes.extend(gateway.map(|gateway| (*cidr, gateway)));
        }
    }
    routes
}

/// What to remove and what to add, in this order of the pair; a changed gateway is an addition that replaces. PURE.
pub fn diff(current: &Routes, desired: &Routes) -> (Vec<IpNet>, Routes) {
    let gone = current.keys().filter(|net| !desired.contains_key(net)).copied().collect();
    let new = desired.iter().filter(|(net, gateway)| current.get(net) != Some(gateway));
    (gone, new.map(|(net, gateway)| (*net, *gateway)).collect())
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
}

impl RouteKeeper {
    /// Keeps the routes as they are to be, for ever. Stop it by dropping the future.
    pub async fn keep_for_ever(self, host: HostNet, engine: Engine) {
        let mut changes = engine.changes();
        let mut held: Option<Routes> = None;
        let has_ipv6 = self.addresses.v6.is_some();
        loop {
            changes.borrow_and_update();
            let wanted = engine.resources(|resources| desired(resources, &self.node, has_ipv6));
            if held.as_ref() != Some(&wanted) {
                match self.synchronise(host.handle(), &wanted).await {
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

    async fn synchronise(&self, handle: &Handle, wanted: &Routes) -> Result<(), rtnetlink::Error> {
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
        synchronise(handle, wanted, self.addresses).await
    }
}

/// Removes every route of ours, also those to pods of this node.
///
/// # Errors
/// What the kernel refused.
pub async fn remove_all(host: &HostNet) -> Result<(), rtnetlink::Error> {
    for route in ours(host.handle()).await? {
        host.handle().route().del(route).execute().await?;
    }
    Ok(())
}

async fn synchronise(handle: &Handle, wanted: &Routes, source: PodAddresses) -> Result<(), rtnetlink::Error> {
    let mut current = Routes::new();
    let mut messages = BTreeMap::new();
    for route in ours(handle).await? {
        if let Some((net, gateway)) = via(&route) {
            current.insert(net, gateway);
            messages.insert(net, route);
        }
    }
    let (gone, new) = diff(&current, wanted);
    // One that is refused must not keep the others from being made.
    let mut result = Ok(());
    for (net, gateway) in new {
        let Some(route) = to(net, gateway, source) else { continue };
        if let Err(error) = handle.route().add(route).replace().execute().await {
            tracing::warn!(%net, %gateway, %error, "route refused");
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

/// A route by a gateway of the same family.
fn to(net: IpNet, gateway: IpAddr, source: PodAddresses) -> Option<RouteMessage> {
    match (net, gateway) {
        (IpNet::V4(net), IpAddr::V4(gateway)) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .gateway(gateway)
                .pref_source(source.v4)
                .protocol(RouteProtocol::Other(PROTOCOL));
            Some(route.build())
        }
        (IpNet::V6(net), IpAddr::V6(gateway)) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .gateway(gateway)
                .pref_source(source.v6?)
                .protocol(RouteProtocol::Other(PROTOCOL));
            Some(route.build())
        }
        _ => None,
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

/// Prefix and gateway; `None` for the routes to this node's own pods, which have no gateway.
fn via(route: &RouteMessage) -> Option<(IpNet, IpAddr)> {
    let mut destination = None;
    let mut gateway = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    let net = IpNet::new(destination?, route.header.destination_prefix_length).ok()?;
    Some((net, gateway?))
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
        list.iter().map(|(net, gateway)| (net.parse().unwrap(), gateway.parse().unwrap())).collect()
    }

    #[test]
    fn a_node_routes_to_all_others_and_not_to_itself() {
        let mut resources = Resources::default();
        for (name, last) in [("n1", 1u8), ("n2", 2)] {
            let pods = [format!("10.1.{last}.0/24"), format!("fd00:1::{last}00/120")];
            let node = NodeRoute {
                address: [192, 0, 2, last].into(),
                address6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())),
                pod_cidrs: pods.map(|net| net.parse().unwrap()).into(),
                zone: String::new(),
            };
            resources.nodes.insert(name.into(), node);
        }
        let both = routes(&[("10.1.2.0/24", "192.0.2.2"), ("fd00:1::200/120", "2001:db8::2")]);
        assert_eq!(desired(&resources, "n1", true), both);
        assert_eq!(desired(&resources, "n1", false), routes(&[("10.1.2.0/24", "192.0.2.2")]));
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
