//! With a tunnel: the way of a pod's packets to other nodes themselves.
//!
//! What a node asks of another node's pod goes through the tunnel, from the node's own address. The pod's answer is to go the
//! same way, as the underlay carries no pod's address; so packets that have a pod's source and another node's address
//! as destination have a routing table of their own. The node's own packets to other nodes, among them those of the tunnel
//! itself, have other sources, and go by the underlay as ever.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Error, Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{PROTOCOL, ip, ours};
use crate::cni::is_missing;

/// The routing table with the other nodes' addresses.
const TABLE: u32 = 2005;
/// Before the main table's, after that of what goes to proxies.
const PRIORITY: u32 = 105;

/// Makes the table and the rules what they are to be: what is new first, and the rules once the table is whole.
pub(super) async fn synchronise(
    handle: &Handle,
    own_pods: &[IpNet],
    nodes: &BTreeSet<IpAddr>,
    device: u32,
) -> Result<(), Error> {
    let held = routes(handle).await?;
    let mut result = Ok(());
    for node in nodes.iter().filter(|node| !held.iter().any(|route| leads(route, **node, device))) {
        if let Err(error) = handle.route().add(to(*node, device)).replace().execute().await {
            tracing::warn!(%node, %error, "route refused");
            result = Err(error);
        }
    }
    for route in held {
        if destination(&route).is_none_or(|node| !nodes.contains(&node)) {
            remove_route(handle, route).await?;
        }
    }
    for family in [IpVersion::V4, IpVersion::V6] {
        let is_v4 = family == IpVersion::V4;
        let wanted = own_pods.iter().find(|net| net.addr().is_ipv4() == is_v4);
        synchronise_rule(handle, family, wanted).await?;
    }
    result
}

/// Removes table and rules. That there are none is fine.
pub(super) async fn remove(handle: &Handle) -> Result<(), Error> {
    for family in [IpVersion::V4, IpVersion::V6] {
        synchronise_rule(handle, family, None).await?;
    }
    for route in routes(handle).await? {
        remove_route(handle, route).await?;
    }
    Ok(())
}

fn to(node: IpAddr, device: u32) -> RouteMessage {
    match node {
        IpAddr::V4(node) => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(TABLE)
            .destination_prefix(node, 32)
            .output_interface(device)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
        IpAddr::V6(node) => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .destination_prefix(node, 128)
            .output_interface(device)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
    }
}

async fn routes(handle: &Handle) -> Result<Vec<RouteMessage>, Error> {
    let all = ours(handle).await?;
    Ok(all.into_iter().filter(|route| route.attributes.contains(&RouteAttribute::Table(TABLE))).collect())
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    })
}

fn leads(route: &RouteMessage, node: IpAddr, device: u32) -> bool {
    destination(route) == Some(node) && route.attributes.contains(&RouteAttribute::Oif(device))
}

async fn remove_route(handle: &Handle, route: RouteMessage) -> Result<(), Error> {
    match handle.route().del(route).execute().await {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// One rule of a family, for these sources, or none.
async fn synchronise_rule(handle: &Handle, family: IpVersion, wanted: Option<&IpNet>) -> Result<(), Error> {
    let all: Vec<RuleMessage> = match handle.rule().get(family.clone()).execute().try_collect().await {
        Ok(all) => all,
        // A kernel without the family has no rules of it.
        Err(_) if wanted.is_none() => return Ok(()),
        Err(error) => return Err(error),
    };
    let own = [RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)), RuleAttribute::Table(TABLE)];
    let held = all.into_iter().filter(|rule| own.iter().all(|mark| rule.attributes.contains(mark)));
    let is_wanted = |rule: &RuleMessage| {
        wanted.is_some_and(|net| {
            rule.header.src_len == net.prefix_len()
                && rule.attributes.contains(&RuleAttribute::Source(net.network()))
        })
    };
    let (kept, gone): (Vec<_>, Vec<_>) = held.partition(is_wanted);
    if let Some(net) = wanted.filter(|_| kept.is_empty()) {
        let protocol = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
        let request = handle.rule().add().table_id(TABLE).priority(PRIORITY).action(RuleAction::ToTable);
        match net {
            IpNet::V4(net) => {
                let mut request = request.v4().source_prefix(net.network(), net.prefix_len());
                request.message_mut().attributes.push(protocol);
                request.execute().await?;
            }
            IpNet::V6(net) => {
                let mut request = request.v6().source_prefix(net.network(), net.prefix_len());
                request.message_mut().attributes.push(protocol);
                request.execute().await?;
            }
        }
    }
    for rule in gone {
        match handle.rule().del(rule).execute().await {
            Err(error) if !is_missing(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
