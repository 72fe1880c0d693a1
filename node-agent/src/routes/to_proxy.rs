//! The way of what a pod's program hands to a proxy of this node: to the node itself, whatever its destination.
//!
//! The program marks such a packet and gives it to the proxy's socket (`bpf_sk_assign`); the kernel then only needs to
//! find that the packet ends here. A mark does not leave the node, and none that a pod sets reaches it: the kernel
//! clears marks between network namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::{
    Error, Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        route::{RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::PROTOCOL;
use crate::cni::{HostNet, is_missing};

/// On packets that end here: the top byte alone is looked at, so that the rest is free for others.
pub const MARK: u32 = 0xa200_0000;
/// Of the mark.
pub const MASK: u32 = 0xff00_0000;
/// The routing table in which everything is local.
pub const TABLE: u32 = 2004;
/// `lo`: the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// Before the main table's.
const PRIORITY: u32 = 104;

/// Makes the rule and the route, for each family that the node has. What is there already is fine.
///
/// # Errors
/// What the kernel refused.
pub async fn ensure(host: &HostNet, has_ipv6: bool) -> Result<(), Error> {
    let handle = host.handle();
    let everything = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .output_interface(LOOPBACK)
        .protocol(RouteProtocol::Other(PROTOCOL));
    handle.route().add(everything.build()).replace().execute().await?;
    ensure_rule(handle, IpVersion::V4).await?;
    if has_ipv6 {
        let everything = RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .kind(RouteType::Local)
            .output_interface(LOOPBACK)
            .protocol(RouteProtocol::Other(PROTOCOL));
        handle.route().add(everything.build()).replace().execute().await?;
        ensure_rule(handle, IpVersion::V6).await?;
    }
    Ok(())
}

/// Removes the rules; the routes go with all others of ours.
///
/// # Errors
/// What the kernel refused.
pub async fn remove(host: &HostNet) -> Result<(), Error> {
    for family in [IpVersion::V4, IpVersion::V6] {
        for rule in ours(host.handle(), family).await? {
            match host.handle().rule().del(rule).execute().await {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

async fn ensure_rule(handle: &Handle, family: IpVersion) -> Result<(), Error> {
    if !ours(handle, family.clone()).await?.is_empty() {
        return Ok(());
    }
    let request = handle.rule().add().table_id(TABLE).priority(PRIORITY).fw_mark(MARK);
    let rest = [RuleAttribute::FwMask(MASK), RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL))];
    let request = request.action(RuleAction::ToTable);
    match family {
        IpVersion::V4 => {
            let mut request = request.v4();
            request.message_mut().attributes.extend(rest);
            request.execute().await
        }
        IpVersion::V6 => {
            let mut request = request.v6();
            request.message_mut().attributes.extend(rest);
            request.execute().await
        }
    }
}

async fn ours(handle: &Handle, family: IpVersion) -> Result<Vec<RuleMessage>, Error> {
    let all: Vec<RuleMessage> = handle.rule().get(family).execute().try_collect().await?;
    let own = [RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)), RuleAttribute::Table(TABLE)];
    Ok(all.into_iter().filter(|rule| own.iter().all(|mark| rule.attributes.contains(mark))).collect())
}
