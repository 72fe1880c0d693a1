//! Services and host ports: what the control plane tells of them, and how it is read. PURE.

use std::{collections::BTreeSet, net::IpAddr};

use ebpf_shared::limits;
use ipnet::IpNet;
use xds_proto::isthmus::agent::v1 as wire;

use crate::redirect;

use super::parse::{MAX_LIST, ParseError, addresses, at_most, bad, ip, is_mapped, port, protocol};
use crate::config::dns_label;

/// Most backends of one service port and address family: what the kernel's tables have room for.
const MAX_BACKENDS: usize = limits::BACKENDS_PER_SERVICE as usize;
/// Most zones that a backend is meant for: clouds have fewer.
const MAX_HINTS: usize = 64;

/// A service of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Service {
    /// Virtual ones.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// What else leads to it.
    pub frontends: Vec<Frontend>,
    /// A client stays with its backend for so long; 0: it does not.
    pub affinity_seconds: u32,
    /// Clients within the mesh get backends of their own node, or none.
    pub internal_local: bool,
    /// Clients outside get backends of the node that they asked, or none.
    pub external_local: bool,
    /// Who may ask at a load balancer's address; empty: anybody.
    pub source_ranges: Vec<IpNet>,
    pub prefer_same_zone: bool,
    /// Before those of the zone.
    pub prefer_same_node: bool,
    /// Backends of other nodes answer clients outside by themselves.
    pub direct: bool,
    /// The name of the node's proxy by which pods reach the virtual addresses; empty: they reach the backends themselves.
    pub redirect: String,
    /// DNS answers its endpoints.
    pub headless: bool,
    /// It is offered to peers.
    pub exported: bool,
    /// Only peers have it.
    pub imported: bool,
    /// Where this node tells by HTTP whether it has endpoints of it; 0: nowhere.
    pub health_port: u16,
    /// Endpoints that are ready, of a headless service without ports.
    pub named: Vec<Named>,
}

/// An endpoint that has a name and no port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Named {
    pub address: IpAddr,
    /// Empty: its address is its name.
    pub hostname: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct ServicePort {
    pub port: u16,
    pub protocol: u8,
    /// 0: none.
    pub proxy_port: u16,
    pub backends: Vec<ServiceBackend>,
    /// Empty: it has none.
    pub name: String,
}

/// An address, other than a virtual one, that leads to a service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Frontend {
    pub kind: FrontendKind,
    /// `None`: those of every node.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Of the [`ServicePort`].
    pub service_port: u16,
    pub protocol: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FrontendKind {
    NodePort,
    ExternalIp,
    LoadBalancer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ServiceBackend {
    pub address: IpAddr,
    pub port: u16,
    pub weight: u32,
    /// Tier: those of a higher one are for when no lower one has any.
    pub priority: u32,
    /// Where it runs; empty: not known.
    pub zone: String,
    pub state: BackendState,
    /// For whose clients it is meant; empty: everybody's.
    pub hint_zones: BTreeSet<String>,
    /// The same by node.
    pub hint_nodes: BTreeSet<String>,
    /// Below the name of a headless service; empty: its address is its name.
    pub hostname: Box<str>,
    /// It is in another cluster.
    pub elsewhere: bool,
}

impl Default for ServiceBackend {
    fn default() -> Self {
        Self {
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
            weight: 0,
            priority: 0,
            zone: String::new(),
            state: BackendState::Active,
            hint_zones: BTreeSet::new(),
            hint_nodes: BTreeSet::new(),
            hostname: Box::default(),
            elsewhere: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BackendState {
    Active,
    /// Serves what it serves, and more only if nobody else does.
    Terminating,
    NotReady,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HostPort {
    /// `None`: at every address of the node.
    pub address: Option<IpAddr>,
    pub host_port: u16,
    /// Of the pod.
    pub port: u16,
    pub protocol: u8,
}

pub(super) fn service(resource: &str, message: wire::Service) -> Result<Service, ParseError> {
    at_most(resource, "ports", &message.ports, MAX_LIST)?;
    at_most(resource, "frontends", &message.frontends, 4 * MAX_LIST)?;
    at_most(resource, "source_ranges", &message.source_ranges, MAX_LIST)?;
    let mut ports = Vec::with_capacity(message.ports.len());
    for told in &message.ports {
        ports.push(service_port(resource, told, message.publish_not_ready)?);
    }
    let mut frontends = Vec::new();
    for told in &message.frontends {
        frontends.extend(frontend(resource, told)?);
    }
    let mut source_ranges = Vec::with_capacity(message.source_ranges.len());
    for text in &message.source_ranges {
        source_ranges.push(match text.parse::<IpNet>() {
            Ok(IpNet::V6(net)) if is_mapped(&net) => {
                return Err(bad(resource, "source_ranges", text, "but IPv4 is to be written as IPv4"));
            }
            Ok(net) => net.trunc(),
            Err(_) => return Err(bad(resource, "source_ranges", text, "expected a CIDR")),
        });
    }
    let forwarding = wire::Forwarding::try_from(message.forwarding)
        .map_err(|_| bad(resource, "forwarding", message.forwarding, "expected SNAT or DSR"))?;
    Ok(Service {
        addresses: addresses(resource, &message.addresses)?,
        ports,
        frontends,
        affinity_seconds: message.affinity_seconds,
        internal_local: message.internal_local,
        external_local: message.external_local,
        source_ranges,
        prefer_same_zone: message.prefer_same_zone,
        prefer_same_node: message.prefer_same_node,
        direct: forwarding == wire::Forwarding::Dsr,
        headless: message.headless,
        exported: message.exported,
        imported: message.imported,
        health_port: u16::try_from(message.health_check_port).map_err(|_| {
            let wanted = "expected a port up to 65535, or 0";
            bad(resource, "health_check_port", message.health_check_port, wanted)
        })?,
        named: named(resource, &message)?,
        redirect: proxy_name(resource, message.redirect)?,
    })
}

fn named(resource: &str, message: &wire::Service) -> Result<Vec<Named>, ParseError> {
    at_most(resource, "named", &message.named, 2 * MAX_BACKENDS)?;
    let mut named = Vec::new();
    for told in &message.named {
        let address = ip(resource, "named.address", &told.address)?;
        let hostname = hostname(resource, "named.hostname", &told.hostname)?;
        if state(resource, "named.state", told.state, message.publish_not_ready)? == BackendState::Active {
            named.push(Named { address, hostname });
        }
    }
    Ok(named)
}

/// Empty, or a label: as it is put into names.
fn hostname(resource: &str, field: &'static str, text: &str) -> Result<Box<str>, ParseError> {
    if !text.is_empty() && dns_label(text).is_err() {
        return Err(bad(resource, field, text, "expected a DNS label"));
    }
    Ok(text.into())
}

fn state(
    resource: &str,
    field: &'static str,
    number: i32,
    publish_not_ready: bool,
) -> Result<BackendState, ParseError> {
    match wire::State::try_from(number) {
        Ok(wire::State::NotReady) if publish_not_ready => Ok(BackendState::Active),
        Ok(wire::State::Active) => Ok(BackendState::Active),
        Ok(wire::State::Terminating) => Ok(BackendState::Terminating),
        Ok(wire::State::NotReady) => Ok(BackendState::NotReady),
        Err(_) => Err(bad(resource, field, number, "expected one of the states of isthmus.agent.v1")),
    }
}

fn proxy_name(resource: &str, name: String) -> Result<String, ParseError> {
    if name.is_empty() || redirect::is_name(&name) {
        return Ok(name);
    }
    let shown: String = name.chars().take(redirect::MAX_NAME).collect();
    Err(bad(resource, "redirect", shown, "expected the name of a proxy, a DNS label"))
}

fn service_port(
    resource: &str,
    message: &wire::ServicePort,
    publish_not_ready: bool,
) -> Result<ServicePort, ParseError> {
    // Of both families, before anything is read.
    at_most(resource, "ports.backends", &message.backends, 2 * MAX_BACKENDS)?;
    at_most(resource, "ports.further", &message.further, 2 * MAX_BACKENDS)?;
    let wanted = "expected a port up to 65535, or 0";
    let told = message.backends.iter().chain(&message.further);
    let backends = told.map(|told| backend(resource, told, publish_not_ready));
    let backends = backends.collect::<Result<Vec<_>, _>>()?;
    let (v4, v6): (Vec<_>, Vec<_>) = backends.iter().partition(|backend| backend.address.is_ipv4());
    at_most(resource, "ports.backends and further, IPv4,", &v4, MAX_BACKENDS)?;
    at_most(resource, "ports.backends and further, IPv6,", &v6, MAX_BACKENDS)?;
    Ok(ServicePort {
        port: port(resource, "ports.port", message.port)?,
        protocol: with_ports(resource, "ports.protocol", message.protocol)?,
        proxy_port: u16::try_from(message.proxy_port)
            .map_err(|_| bad(resource, "ports.proxy_port", message.proxy_port, wanted))?,
        backends,
        name: String::from(hostname(resource, "ports.name", &message.name)?),
    })
}

fn backend(
    resource: &str,
    message: &wire::Backend,
    publish_not_ready: bool,
) -> Result<ServiceBackend, ParseError> {
    at_most(resource, "ports.backends.hint_zones", &message.hint_zones, MAX_HINTS)?;
    at_most(resource, "ports.backends.hint_nodes", &message.hint_nodes, MAX_HINTS)?;
    Ok(ServiceBackend {
        address: ip(resource, "ports.backends.address", &message.address)?,
        port: port(resource, "ports.backends.port", message.port)?,
        weight: message.weight,
        priority: message.priority,
        zone: message.zone.clone(),
        state: state(resource, "ports.backends.state", message.state, publish_not_ready)?,
        hint_zones: message.hint_zones.iter().cloned().collect(),
        hint_nodes: message.hint_nodes.iter().cloned().collect(),
        hostname: hostname(resource, "ports.backends.hostname", &message.hostname)?,
        elsewhere: !message.cluster.is_empty(),
    })
}

/// `None` for virtual addresses, which are told of elsewhere as well.
fn frontend(resource: &str, message: &wire::Frontend) -> Result<Option<Frontend>, ParseError> {
    use wire::frontend::Kind;
    let kind = match Kind::try_from(message.kind) {
        Ok(Kind::ClusterIp) => return Ok(None),
        Ok(Kind::NodePort) => FrontendKind::NodePort,
        Ok(Kind::ExternalIp) => FrontendKind::ExternalIp,
        Ok(Kind::LoadBalancer) => FrontendKind::LoadBalancer,
        Err(_) => {
            let wanted = "expected one of the kinds of isthmus.agent.v1";
            return Err(bad(resource, "frontends.kind", message.kind, wanted));
        }
    };
    let address = match message.address.as_str() {
        "" if kind == FrontendKind::NodePort => None,
        text => Some(ip(resource, "frontends.address", text)?),
    };
    Ok(Some(Frontend {
        kind,
        address,
        port: port(resource, "frontends.port", message.port)?,
        service_port: port(resource, "frontends.service_port", message.service_port)?,
        protocol: with_ports(resource, "frontends.protocol", message.protocol)?,
    }))
}

pub(super) fn host_port(resource: &str, message: &wire::HostPort) -> Result<HostPort, ParseError> {
    Ok(HostPort {
        address: match message.host_ip.as_str() {
            "" => None,
            text => {
                let address = ip(resource, "host_ports.host_ip", text)?;
                // Kubernetes' way to say all.
                (!address.is_unspecified()).then_some(address)
            }
        },
        host_port: port(resource, "host_ports.host_port", message.host_port)?,
        port: port(resource, "host_ports.port", message.port)?,
        protocol: with_ports(resource, "host_ports.protocol", message.protocol)?,
    })
}

fn with_ports(resource: &str, field: &'static str, number: i32) -> Result<u8, ParseError> {
    match protocol(resource, field, number)? {
        known @ (6 | 17 | 132) => Ok(known),
        _ => Err(bad(resource, field, number, "expected a protocol with ports")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> wire::Service {
        wire::Service {
            name: "shop/pay".into(),
            addresses: vec!["10.2.0.1".into()],
            ports: vec![wire::ServicePort {
                port: 80,
                protocol: wire::Protocol::Tcp as i32,
                backends: vec![wire::Backend {
                    address: "10.1.0.2".into(),
                    port: 8080,
                    ..Default::default()
                }],
                further: vec![wire::Backend {
                    address: "10.1.0.3".into(),
                    port: 8080,
                    state: wire::State::NotReady as i32,
                    hint_zones: vec!["a".into()],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            frontends: vec![
                wire::Frontend {
                    address: "10.2.0.1".into(),
                    port: 80,
                    service_port: 80,
                    ..Default::default()
                },
                wire::Frontend {
                    kind: wire::frontend::Kind::NodePort as i32,
                    port: 30080,
                    service_port: 80,
                    protocol: wire::Protocol::Tcp as i32,
                    ..Default::default()
                },
            ],
            source_ranges: vec!["192.0.2.7/24".into()],
            forwarding: wire::Forwarding::Dsr as i32,
            named: vec![
                wire::Backend { address: "10.1.0.4".into(), hostname: "db-0".into(), ..Default::default() },
                wire::Backend {
                    address: "10.1.0.5".into(),
                    state: wire::State::NotReady as i32,
                    ..Default::default()
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn every_way_in_and_every_backend_is_taken() {
        let read = service("shop/pay", message()).unwrap();
        assert_eq!(read.frontends.len(), 1, "virtual addresses are told of elsewhere");
        assert_eq!((read.frontends[0].port, read.frontends[0].address), (30080, None));
        assert_eq!(read.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
        assert!(read.direct);
        let states: Vec<_> = read.ports[0].backends.iter().map(|backend| backend.state).collect();
        assert_eq!(states, [BackendState::Active, BackendState::NotReady]);
        let early = wire::Service { publish_not_ready: true, ..message() };
        assert_eq!((read.named.len(), &*read.named[0].hostname), (1, "db-0"));
        let early = service("shop/pay", early).unwrap();
        assert_eq!((early.ports[0].backends.len(), early.named.len()), (2, 2));
        assert!(early.ports[0].backends.iter().all(|backend| backend.state == BackendState::Active));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_field() {
        let spoil = |change: fn(&mut wire::Service)| {
            let mut message = message();
            change(&mut message);
            service("shop/pay", message).unwrap_err().to_string()
        };
        for (error, field) in [
            (spoil(|m| m.frontends[1].kind = 9), "frontends.kind"),
            (spoil(|m| m.frontends[1].protocol = 1), "frontends.protocol"),
            (spoil(|m| m.frontends[1].port = 70_000), "frontends.port"),
            (spoil(|m| m.frontends[1].kind = wire::frontend::Kind::ExternalIp as i32), "frontends.address"),
            (spoil(|m| m.ports[0].further[0].state = 9), "ports.backends.state"),
            (spoil(|m| m.source_ranges.push("::ffff:10.0.0.0/104".into())), "source_ranges"),
            (spoil(|m| m.forwarding = 7), "forwarding"),
            (spoil(|m| m.ports[0].name = "a.b".into()), "ports.name"),
            (spoil(|m| m.ports[0].backends[0].hostname = "a b".into()), "ports.backends.hostname"),
            (spoil(|m| m.named[0].address = "x".into()), "named.address"),
            (spoil(|m| m.named[0].hostname = "A".into()), "named.hostname"),
            (spoil(|m| m.health_check_port = 70_000), "health_check_port"),
        ] {
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn backends_that_no_table_has_room_for_are_refused_with_the_service() {
        let told = |backends: u32, further: u32, v6: u32| {
            let backend = |address: IpAddr| wire::Backend {
                address: address.to_string(),
                port: 8080,
                ..Default::default()
            };
            let v4 = |n: u32| backend(std::net::Ipv4Addr::from(0x0a01_0000 + n).into());
            let mut message = message();
            message.ports[0].backends = (0..backends).map(v4).collect();
            message.ports[0].further = (backends..backends + further).map(v4).collect();
            let v6 =
                (0..v6).map(|n| backend(std::net::Ipv6Addr::from(0xfd_u128 << 120 | u128::from(n)).into()));
            message.ports[0].backends.extend(v6);
            service("shop/pay", message)
        };
        assert!(told(4_000, 96, 4_096).is_ok(), "a table each");
        for (backends, further, v6, family) in [(4_000, 97, 0, "IPv4"), (1, 0, 4_097, "IPv6")] {
            let error = told(backends, further, v6).unwrap_err().to_string();
            let expected = format!("{family}, has 4097 entries, at most 4096 are allowed");
            assert!(error.contains("shop/pay") && error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn a_host_port_at_the_unspecified_address_is_at_every_address() {
        let told = |host_ip: &str| wire::HostPort {
            host_ip: host_ip.into(),
            host_port: 8080,
            port: 80,
            protocol: wire::Protocol::Udp as i32,
        };
        assert_eq!(host_port("a/b", &told("0.0.0.0")).unwrap().address, None);
        assert!(host_port("a/b", &told("192.0.2.1")).unwrap().address.is_some());
        assert!(host_port("a/b", &wire::HostPort { port: 0, ..told("") }).is_err());
    }
}
