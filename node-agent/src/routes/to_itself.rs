//! Addresses at which the node itself is to be reached and that are on none of its interfaces: packets to them end here.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{PROTOCOL, ours, way};
use crate::cni::{HostNet, is_missing};

/// The kernel's table of what is the node's own.
const TABLE: u32 = 255;
/// `lo`: the first link of every network namespace.
const LOOPBACK: u32 = 1;

/// Has packets to these addresses end here, and to no others that were asked for before.
///
/// # Errors
/// What the kernel refused.
pub async fn ensure(host: &HostNet, wanted: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let own = host.addresses().await?;
    let wanted: BTreeSet<IpAddr> = wanted.difference(&own).copied().collect();
    for route in ours(host.handle()).await?.into_iter().filter(is_one) {
        let is_wanted = way(&route).is_some_and(|(net, _)| wanted.contains(&net.addr()));
        if !is_wanted
            && let Err(error) = host.handle().route().del(route).execute().await
            && !is_missing(&error)
        {
            return Err(error.into());
        }
    }
    for address in wanted {
        host.handle().route().add(to(address)).replace().execute().await?;
    }
    Ok(())
}

fn to(address: IpAddr) -> RouteMessage {
    let length = IpNet::from(address).prefix_len();
    match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .destination_prefix(address, length)
            .output_interface(LOOPBACK)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .kind(RouteType::Local)
            .destination_prefix(address, length)
            .output_interface(LOOPBACK)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
    }
}

/// (The way to proxies is in a table of its own.)
fn is_one(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local && u32::from(route.header.table) == TABLE
}
