//! The proxy of a node, to which the kernel leads what pods send: one listener for all of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_model::view::{self, LedPort, NodeProxyView, Reader};
use xds_proto::{
    envoy::{
        config::{
            core::v3::{CidrRange, SocketOption, TrafficDirection, socket_option},
            listener::v3::{
                AdditionalAddress, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
            },
            route::v3::{RouteConfiguration, route, route_action::ClusterSpecifier},
        },
        extensions::filters::{
            listener::{original_dst::v3::OriginalDst, original_src::v3::OriginalSrc},
            network::http_connection_manager::v3::HttpFilter,
        },
    },
    google::protobuf::Any,
    to_any,
};

use super::{
    cluster::{self, Encryption},
    endpoint, listener, reader, route as routes,
    wire::{address, number, yes},
};
use crate::xds::Encoded;

/// Name of the listener.
const LISTENER: &str = "node-proxy";
/// Chain, routes and cluster of what comes by policy: it goes to whom the pod asked.
const ASKED_FOR: &str = "node-proxy|asked-for";
/// Where it listens, at 127.0.0.1 and `::1`: what its registration is to say (`node-agent redirect --port4 --port6`).
const PORT: u16 = 15_006;
/// What the agent's kernel programs know the sockets of proxies by (`MARK` of `ebpf-shared/src/redirect.rs`).
const MARK: u32 = 0xa300_0000;
/// `SOL_SOCKET`, `SO_MARK`.
const SO_MARK: (i64, i64) = (1, 36);

/// Everything that it has.
pub fn resources(view: &NodeProxyView<'_>) -> Vec<Encoded> {
    let mut all = Vec::new();
    if let Some(message) = listener(view) {
        all.push(Encoded::new(LISTENER, &message));
    }
    for port in view.ports.iter().filter(|port| listener::is_http(port.protocol)) {
        all.push(Encoded::new(port.name.as_str(), &route_table(port)));
    }
    if !view.readers.is_empty() {
        all.push(Encoded::new(ASKED_FOR, &cluster::original(ASKED_FOR)));
    }
    for led in &view.clusters {
        let name = led.name.as_str();
        all.push(Encoded::new(name, &cluster::outbound(name, "", &[], led.protocol, Encryption::Plain)));
        all.push(Encoded::new(name, &endpoint::assignment(name, &led.endpoints, led.overflow)));
    }
    all
}

/// None without anything to serve: then what is led here is refused, because there is no socket to give it to.
fn listener(view: &NodeProxyView<'_>) -> Option<Listener> {
    let by_policy = (!view.readers.is_empty()).then(|| by_policy(&view.readers));
    if view.ports.is_empty() && by_policy.is_none() {
        return None;
    }
    let at = |ip: IpAddr| address(SocketAddr::new(ip, PORT));
    let filters = [
        // Whom the pod asked; whom the proxy asks as.
        ("envoy.filters.listener.original_dst", to_any(&OriginalDst {})),
        ("envoy.filters.listener.original_src", to_any(&OriginalSrc { mark: MARK, ..Default::default() })),
    ];
    Some(Listener {
        name: LISTENER.to_owned(),
        address: Some(at(Ipv4Addr::LOCALHOST.into())),
        additional_addresses: vec![AdditionalAddress {
            address: Some(at(Ipv6Addr::LOCALHOST.into())),
            ..Default::default()
        }],
        transparent: yes(),
        socket_options: vec![SocketOption {
            level: SO_MARK.0,
            name: SO_MARK.1,
            value: Some(socket_option::Value::IntValue(MARK.cast_signed().into())),
            ..Default::default()
        }],
        listener_filters: filters.into_iter().map(|(name, config)| listener_filter(name, config)).collect(),
        filter_chains: view.ports.iter().map(|port| chain(view, port)).collect(),
        default_filter_chain: by_policy,
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Default::default()
    })
}

fn listener_filter(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// What comes by policy, whomever it is for, goes there, if a rule lets it through.
fn by_policy(readers: &[Reader<'_>]) -> FilterChain {
    let table = routes::to_one_cluster(ASKED_FOR, ASKED_FOR);
    FilterChain {
        name: ASKED_FOR.to_owned(),
        filters: vec![listener::read(ASKED_FOR, reader::by_policy(readers), Some(table))],
        ..Default::default()
    }
}

/// What judges requests to a service that is led here; None: nothing, or nobody could read them.
fn judge(view: &NodeProxyView<'_>, port: &LedPort<'_>) -> Option<HttpFilter> {
    let ends = view.clusters.iter().filter(|cluster| cluster.name == port.name);
    let ends = ends.flat_map(|cluster| &cluster.endpoints).map(|e| (e.address.ip(), e.address.port()));
    reader::by_service(&view.readers, &ends.collect::<Vec<_>>())
}

fn chain(view: &NodeProxyView<'_>, port: &LedPort<'_>) -> FilterChain {
    let name = &port.name;
    let filter = match judge(view, port) {
        // Who may not call it unread does not get by as bytes either: they are no requests, and are answered so.
        Some(judge) if listener::is_http(port.protocol) => listener::read(name, judge, None),
        Some(judge) => listener::read(name, judge, Some(routes::to_one_cluster(name, name))),
        None => listener::to_service(name, port.protocol),
    };
    let whole = if port.address.is_ipv4() { 32 } else { 128 };
    FilterChain {
        name: port.name.clone(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: number(port.port.into()),
            prefix_ranges: vec![CidrRange {
                address_prefix: port.address.to_string(),
                prefix_len: number(whole),
            }],
            ..Default::default()
        }),
        filters: vec![filter],
        ..Default::default()
    }
}

/// The routes that sidecars have, to the clusters of the family.
fn route_table(port: &LedPort<'_>) -> RouteConfiguration {
    let mut table = routes::outbound(&port.name, port.routes);
    // Without routes everything goes to the cluster of the table's own name, which is of the family already.
    if port.routes.is_empty() {
        return table;
    }
    let rename = |name: &mut String| *name = view::of_family(name, port.family);
    for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        let Some(route::Action::Route(action)) = &mut route.action else { continue };
        match &mut action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => rename(name),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted.clusters.iter_mut().for_each(|one| rename(&mut one.name));
            }
            _ => {}
        }
        action.request_mirror_policies.iter_mut().for_each(|mirror| rename(&mut mirror.cluster));
    }
    table
}
