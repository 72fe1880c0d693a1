//! Links, addresses, neighbours and routes, by rtnetlink.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope},
    },
};
use thiserror::Error;

use super::{GATEWAY, GATEWAY6, MTU};
use crate::{desired::PodAddresses, routes::PROTOCOL};

/// What the kernel refused.
#[derive(Debug, Error)]
#[error("{what} {name}: {error}")]
pub struct LinkError {
    what: &'static str,
    name: String,
    error: rtnetlink::Error,
}

fn at<'a>(what: &'static str, name: &'a str) -> impl Fn(rtnetlink::Error) -> LinkError + 'a {
    move |error| LinkError { what, name: name.to_owned(), error }
}

/// Whether the kernel says that what was to be removed is not there.
pub(crate) fn is_missing(error: &rtnetlink::Error) -> bool {
    has_errno(error, &[libc::ENODEV, libc::ENOENT, libc::ESRCH])
}

fn has_errno(error: &rtnetlink::Error, numbers: &[i32]) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.is_some_and(|code| numbers.contains(&-code.get()))
        }
        _ => false,
    }
}

/// A link that is to be made: both ends get the addresses that we chose, so that none need be asked for.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct PodLink {
    pub host_name: String,
    pub pod_name: String,
    pub host_mac: [u8; 6],
    pub pod_mac: [u8; 6],
    pub addresses: PodAddresses,
    pub mtu: u32,
}

/// The node's own network namespace.
#[derive(Debug, Clone)]
pub struct HostNet {
    handle: Handle,
}

impl HostNet {
    /// Opens a netlink socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { handle: connect()? })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Makes the link, both ends down: the pod's end inside its namespace, under its final name.
    ///
    /// # Errors
    /// For instance that one of the names is taken.
    pub async fn create(&self, link: &PodLink, netns_fd: i32) -> Result<u32, LinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(link.pod_name.clone())
            .setns_by_fd(netns_fd)
            .address(link.pod_mac.to_vec())
            .mtu(link.mtu)
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(link.host_name.clone())
            .address(link.host_mac.to_vec())
            .mtu(link.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(message).execute().await.map_err(at("create link", &link.host_name))?;
        match self.index(&link.host_name).await? {
            Some(index) => Ok(index),
            None => Err(at("find link", &link.host_name)(rtnetlink::Error::RequestFailed)),
        }
    }

    /// The host's end goes up, and the pod's addresses lead to it. `source` is what the node itself calls pods
    /// from.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn open(&self, link: &PodLink, index: u32, source: PodAddresses) -> Result<(), LinkError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(at("set up link", &link.host_name))?;
        for address in link.addresses.iter() {
            neighbour(&self.handle, index, address, &link.pod_mac, &link.host_name).await?;
        }
        let mut routes = vec![
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(link.addresses.v4, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .pref_source(source.v4)
                .build(),
        ];
        if let Some(address) = link.addresses.v6 {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .output_interface(index)
                .protocol(RouteProtocol::Other(PROTOCOL));
            let route = match source.v6 {
                Some(source) => route.pref_source(source),
                None => route,
            };
            routes.push(route.build());
        }
        for route in routes {
            let added = self.handle.route().add(route).replace().execute().await;
            added.map_err(at("add route to", &link.host_name))?;
        }
        Ok(())
    }

    /// The index of a link; `None` if there is none of that name.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, LinkError> {
        Ok(index_and_state(&self.handle, name).await?.map(|(index, _)| index))
    }

    /// Whether a link of that name and index is there and up.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn is_up(&self, name: &str, index: u32) -> Result<bool, LinkError> {
        Ok(index_and_state(&self.handle, name).await?.is_some_and(|(found, up)| found == index && up))
    }

    /// The MTU of the interface that has an address: direct routing adds no header, so pods have the whole of it.
    /// [`MTU`] if nobody has the address, or only loopback.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn uplink_mtu(&self, address: Ipv4Addr) -> Result<u32, LinkError> {
        let Some(message) = own_address(address.into()).await? else { return Ok(MTU) };
        let mut links = self.handle.link().get().match_index(message.header.index).execute();
        let link = match links.try_next().await {
            Ok(Some(link)) if !link.header.flags.contains(LinkFlags::Loopback) => link,
            Ok(_) => return Ok(MTU),
            Err(error) if is_missing(&error) => return Ok(MTU),
            Err(error) => return Err(at("find uplink", "of the node")(error)),
        };
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        // IPv6 needs 1280, and a veth pair takes no more than this.
        Ok(mtu.unwrap_or(MTU).clamp(1280, 65_535))
    }

    /// Every address of this node's interfaces.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> Result<BTreeSet<IpAddr>, LinkError> {
        own_addresses().await
    }

    /// Whether an address is the node's own.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn has_address(&self, address: IpAddr) -> Result<bool, LinkError> {
        own_address(address).await.map(|found| found.is_some())
    }

    /// Whether there is a link of this index.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn has_index(&self, index: u32) -> Result<bool, LinkError> {
        let mut found = self.handle.link().get().match_index(index).execute();
        match found.try_next().await {
            Ok(link) => Ok(link.is_some()),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(at("find link", "by its index")(error)),
        }
    }

    /// The name and hardware address of this end of a pair, if the other end is what it is said to be.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(crate) async fn end_of_pair(&self, index: u32, other: u32) -> Result<Option<PairEnd>, LinkError> {
        let mut found = self.handle.link().get().match_index(index).execute();
        match found.try_next().await {
            Ok(link) => Ok(link.as_ref().and_then(PairEnd::of).filter(|end| end.other == other)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(at("find link", "by its index")(error)),
        }
    }

    /// Removes a link, and with it the other end and its routes. That there is none is fine.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn remove(&self, name: &str) -> Result<(), LinkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_missing(&error) => Err(at("remove link", name)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Every address of the calling thread's namespace. By a socket of its own, see [`own_address`].
async fn own_addresses() -> Result<BTreeSet<IpAddr>, LinkError> {
    let failed = |_| at("list addresses", "of the node")(rtnetlink::Error::RequestFailed);
    let handle = connect().map_err(failed)?;
    let all: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(at("list addresses", "of the node"))?;
    let told = all.iter().flat_map(|message| &message.attributes);
    // Of a link between two, `Address` is the other end.
    let local = told.filter_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        AddressAttribute::Address(IpAddr::V6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Ok(local.collect())
}

/// An address of the calling thread's namespace. By a socket of its own, because addresses come as a list, and one
/// socket gives one list at a time.
async fn own_address(address: IpAddr) -> Result<Option<AddressMessage>, LinkError> {
    let failed = |_| at("look for an address", "of the node")(rtnetlink::Error::RequestFailed);
    let handle = connect().map_err(failed)?;
    let found = handle.address().get().set_address_filter(address).execute();
    let all: Vec<_> = found.try_collect().await.map_err(at("look for an address", "of the node"))?;
    Ok(all.into_iter().next())
}

/// One end of a veth pair, seen from its own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PairEnd {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    /// Index of the other end, in its namespace.
    pub(crate) other: u32,
}

impl PairEnd {
    /// `None` if the link is of another kind.
    fn of(link: &LinkMessage) -> Option<Self> {
        let (mut name, mut mac, mut mtu, mut other, mut is_veth) = (None, None, MTU, None, false);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Link(index) => other = Some(*index),
                LinkAttribute::LinkInfo(infos) => is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
                _ => {}
            }
        }
        let end = Self { index: link.header.index, name: name?, mac: mac?, mtu, other: other? };
        is_veth.then_some(end)
    }
}

/// Inside a pod's namespace: an interface that another plugin has made, as an end of a pair; `None` if there is none of
/// that name or it is of another kind.
pub(crate) fn pair_in_pod(name: &str) -> Result<Option<PairEnd>, LinkError> {
    block_on(name, |handle| async move {
        let mut found = handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(link) => Ok(link.as_ref().and_then(PairEnd::of)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(at("find link", name)(error)),
        }
    })
}

/// Says once and for all which hardware address is behind an address, so that none need be asked for.
async fn neighbour(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    mac: &[u8; 6],
    name: &str,
) -> Result<(), LinkError> {
    let request = handle.neighbours().add(index, address).link_layer_address(mac).replace();
    request.execute().await.map_err(at("add neighbour on", name))
}

async fn index_and_state(handle: &Handle, name: &str) -> Result<Option<(u32, bool)>, LinkError> {
    let mut found = handle.link().get().match_name(name).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|link| (link.header.index, link.header.flags.contains(LinkFlags::Up)))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(at("find link", name)(error)),
    }
}

/// Inside the pod's namespace: address, routes and the gateway's neighbour entry; loopback goes up as well.
/// Blocks; it is meant for [`super::Netns::run`].
pub(crate) fn set_up_pod(link: &PodLink) -> Result<(), LinkError> {
    block_on(&link.pod_name, |handle| async move {
        let name = link.pod_name.as_str();
        let Some((index, _)) = index_and_state(&handle, name).await? else {
            return Err(at("find link", name)(rtnetlink::Error::RequestFailed));
        };
        if let Some((loopback, _)) = index_and_state(&handle, "lo").await? {
            let up = LinkUnspec::new_with_index(loopback).up().build();
            handle.link().set(up).execute().await.map_err(at("set up link", "lo"))?;
        }
        for address in link.addresses.iter() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let added = handle.address().add(index, address, whole).replace().execute().await;
            added.map_err(at("add address to", name))?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.map_err(at("set up link", name))?;
        neighbour(&handle, index, IpAddr::V4(GATEWAY), &link.host_mac, name).await?;
        let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(GATEWAY, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        // Never in place of a route that is there: that one would be lost for good when this pod goes.
        handle.route().add(to_gateway).execute().await.map_err(at("add gateway route on", name))?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(index).build();
        handle.route().add(default).execute().await.map_err(at("add default route on", name))?;
        if link.addresses.v6.is_none() {
            return Ok(());
        }
        neighbour(&handle, index, IpAddr::V6(GATEWAY6), &link.host_mac, name).await?;
        let default =
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY6).output_interface(index).build();
        handle.route().add(default).execute().await.map_err(at("add default route on", name))
    })
}

/// Inside a namespace that is to become a pod's: what stands in the way of an interface of that name with the default
/// route. The sentence says what is there; nothing is changed.
pub(crate) fn obstacle_in_pod(name: &str) -> Result<Option<String>, LinkError> {
    block_on(name, |handle| async move {
        if index_and_state(&handle, name).await?.is_some() {
            return Ok(Some(format!(
                "has an interface {name} already, which is not of this plugin's making"
            )));
        }
        let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(route) = routes.try_next().await.map_err(at("list routes for", name))? {
            if let Some(what) = obstacle(&route) {
                return Ok(Some(format!("has {what} already, which is not of this plugin's making")));
            }
        }
        Ok(None)
    })
}

/// Whether a route is one of those that a pod gets.
fn obstacle(route: &RouteMessage) -> Option<String> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let via = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(format!(" via {gateway}")),
        _ => None,
    });
    let to_gateway = RouteAttribute::Destination(RouteAddress::Inet(GATEWAY));
    match route.header.destination_prefix_length {
        0 => Some(format!("a default route{}", via.unwrap_or_default())),
        32 if route.attributes.contains(&to_gateway) => Some(format!("a route to {GATEWAY}")),
        _ => None,
    }
}

/// Inside the pod's namespace: removes the pod's end, if it is there. An interface of that name with another hardware
/// address is someone else's, and stays.
pub(crate) fn remove_in_pod(name: &str, mac: [u8; 6]) -> Result<(), LinkError> {
    block_on(name, |handle| async move {
        let mut found = handle.link().get().match_name(name).execute();
        let link = match found.try_next().await {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(()),
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(at("find link", name)(error)),
        };
        if !link.attributes.contains(&LinkAttribute::Address(mac.to_vec())) {
            return Ok(());
        }
        match handle.link().del(link.header.index).execute().await {
            Err(error) if !is_missing(&error) => Err(at("remove link", name)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    })
}

/// Inside the pod's namespace: what CHECK wants to know. The sentence says what is wrong. The routes of a pod that
/// another plugin has made are that one's to check.
pub(crate) fn check_pod(
    name: &str,
    wanted: PodAddresses,
    is_chained: bool,
) -> Result<Option<String>, LinkError> {
    block_on(name, |handle| async move {
        let Some((index, up)) = index_and_state(&handle, name).await? else {
            return Ok(Some(format!("the pod has no interface {name}")));
        };
        if !up {
            return Ok(Some(format!("the pod's interface {name} is down")));
        }
        let addresses = handle.address().get().set_link_index_filter(index).execute();
        let addresses: Vec<_> = addresses.try_collect().await.map_err(at("list addresses of", name))?;
        for address in wanted.iter() {
            // IPv6 knows no other end of an address, and so no local one.
            let named = [AddressAttribute::Local(address), AddressAttribute::Address(address)];
            let has = |found: &AddressMessage| named.iter().any(|name| found.attributes.contains(name));
            if !addresses.iter().any(has) {
                return Ok(Some(format!("the pod's interface {name} does not have the address {address}")));
            }
        }
        if is_chained {
            return Ok(None);
        }
        let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(route) = routes.try_next().await.map_err(at("list routes of", name))? {
            let via = RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY));
            if route.header.destination_prefix_length == 0 && route.attributes.contains(&via) {
                return if wanted.v6.is_some() { check_default6(&handle, name).await } else { Ok(None) };
            }
        }
        Ok(Some(format!("the pod has no default route via {GATEWAY}")))
    })
}

async fn check_default6(handle: &Handle, name: &str) -> Result<Option<String>, LinkError> {
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await.map_err(at("list routes of", name))? {
        let via = RouteAttribute::Gateway(RouteAddress::Inet6(GATEWAY6));
        if route.header.destination_prefix_length == 0 && route.attributes.contains(&via) {
            return Ok(None);
        }
    }
    Ok(Some(format!("the pod has no default route via {GATEWAY6}")))
}

fn connect() -> std::io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A runtime of its own for the calling thread, whose netlink socket must be in the thread's namespace.
fn block_on<T, F: Future<Output = Result<T, LinkError>>>(
    name: &str,
    work: impl FnOnce(Handle) -> F,
) -> Result<T, LinkError> {
    let failed = |_| at("open netlink for", name)(rtnetlink::Error::RequestFailed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async { work(connect().map_err(failed)?).await })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_that_a_pod_gets_itself_stand_in_its_way() {
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(other).build();
        assert_eq!(obstacle(&default).unwrap(), "a default route via 192.0.2.1");
        let on_link = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(3).build();
        assert_eq!(obstacle(&on_link).unwrap(), "a default route");
        let gateway = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(GATEWAY, 32).build();
        assert_eq!(obstacle(&gateway).unwrap(), "a route to 169.254.1.1");

        let prefix = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(other, 24).build();
        assert_eq!(obstacle(&prefix), None);
        let mut elsewhere = default;
        elsewhere.header.table = 100;
        assert_eq!(obstacle(&elsewhere), None);
    }
}
