//! Wire to value, for each of the agent's types. PURE. What can't be read is refused, never widened.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ebpf_shared::{
    Direction,
    packet::protocol::{ICMP, ICMPV6},
};
use ipnet::{IpNet, Ipv6Net};
use mesh_model::{
    identity::{FIRST_IDENTITY, MAX_IDENTITY, SpiffeId, TrustDomain},
    limits::{MAX_CLASS_PEERS, MAX_CLASS_RULES},
    policy::NamePattern,
    records::Tunnel,
    resource::NamespacedName,
};
use mesh_tls::jwt::{JwtPublicKey, MAX_JWT_KEYS};
use thiserror::Error;
use xds_proto::isthmus::agent::v1 as wire;

use super::resources::{
    Address, Asked, Bundle, Class, Entity, Host, L7, Local, NodeRoute, Peer, Readiness, Rule,
};
use super::services::host_port;
use crate::config::{dns_label, dns_name};

/// Most ports of a service, captured ports of a workload, addresses of anything.
pub(super) const MAX_LIST: usize = 1_024;
/// Revoked registrations of one trust domain: what a control plane remembers at most.
const MAX_REVOKED: usize = 20_000;

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ParseError {
    #[error("type {0:?} is not one that agents subscribe to")]
    UnknownType(String),
    #[error(transparent)]
    Decode(#[from] xds_client::DecodeError),
    #[error("resource {resource:?}: {field} is {value:?}, {wanted}")]
    Field { resource: String, field: &'static str, value: String, wanted: &'static str },
    #[error("resource {resource:?}: {field} has {count} entries, at most {max} are allowed")]
    TooMany { resource: String, field: &'static str, count: usize, max: usize },
}

pub(super) fn bad(
    resource: &str,
    field: &'static str,
    value: impl ToString,
    wanted: &'static str,
) -> ParseError {
    let value = value.to_string().chars().take(256).collect();
    ParseError::Field { resource: resource.to_owned(), field, value, wanted }
}

pub(super) fn at_most<T>(
    resource: &str,
    field: &'static str,
    list: &[T],
    max: usize,
) -> Result<(), ParseError> {
    if list.len() <= max {
        return Ok(());
    }
    Err(ParseError::TooMany { resource: resource.to_owned(), field, count: list.len(), max })
}

pub(super) fn name(name: &str) -> Result<NamespacedName, ParseError> {
    let wanted = "expected <namespace>/<name>, both DNS labels";
    let parsed = NamespacedName::parse(name).ok_or_else(|| bad(name, "name", name, wanted))?;
    if dns_label(&parsed.namespace).is_err() || dns_label(&parsed.name).is_err() {
        return Err(bad(name, "name", name, wanted));
    }
    Ok(parsed)
}

pub(super) fn class_number(name: &str) -> Result<u32, ParseError> {
    name.parse().map_err(|_| bad(name, "name", name, "expected a class number"))
}

pub(super) fn trust_domain(name: &str) -> Result<TrustDomain, ParseError> {
    TrustDomain::parse(name).map_err(|_| bad(name, "name", name, "expected a trust domain"))
}

pub(super) fn node_name(name: &str) -> Result<String, ParseError> {
    dns_name(name).map_err(|_| bad(name, "name", name, "expected a DNS name"))
}

/// Of a workload. Lower numbers are those of nodes and of the world, which nobody becomes by being told.
fn identity(resource: &str, number: u32) -> Result<u32, ParseError> {
    if (FIRST_IDENTITY..=MAX_IDENTITY).contains(&number) {
        return Ok(number);
    }
    Err(bad(resource, "identity", number, "expected 256 to 16777215"))
}

/// An IPv4 address in its IPv6-mapped form is the IPv4 address, as it is for the kernel.
pub(super) fn ip(resource: &str, field: &'static str, text: &str) -> Result<IpAddr, ParseError> {
    let parsed = text.parse::<IpAddr>().map_err(|_| bad(resource, field, text, "expected an IP address"))?;
    Ok(parsed.to_canonical())
}

pub(super) fn addresses(resource: &str, texts: &[String]) -> Result<Vec<IpAddr>, ParseError> {
    at_most(resource, "addresses", texts, MAX_LIST)?;
    texts.iter().map(|text| ip(resource, "addresses", text)).collect()
}

/// Whether it is within the IPv4-mapped addresses, `::ffff:0:0/96`.
pub(super) fn is_mapped(net: &Ipv6Net) -> bool {
    net.prefix_len() >= 96 && net.addr().to_ipv4_mapped().is_some()
}

pub(super) fn port(resource: &str, field: &'static str, number: u32) -> Result<u16, ParseError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(bad(resource, field, number, "expected a port from 1 to 65535")),
    }
}

/// 0 for any.
pub(super) fn protocol(resource: &str, field: &'static str, number: i32) -> Result<u8, ParseError> {
    let wanted = "expected one of the protocols of isthmus.agent.v1";
    let known = wire::Protocol::try_from(number).map_err(|_| bad(resource, field, number, wanted))?;
    u8::try_from(known as i32).map_err(|_| bad(resource, field, number, wanted))
}

pub(super) fn address(resource: &str, message: wire::WorkloadAddress) -> Result<Address, ParseError> {
    Ok(Address {
        addresses: addresses(resource, &message.addresses)?,
        identity: identity(resource, message.identity)?,
    })
}

pub(super) fn local(resource: &str, message: wire::LocalEndpoint) -> Result<Local, ParseError> {
    at_most(resource, "captured_ports", &message.captured_ports, MAX_LIST)?;
    at_most(resource, "host_ports", &message.host_ports, MAX_LIST)?;
    let host_ports =
        message.host_ports.iter().map(|told| host_port(resource, told)).collect::<Result<_, _>>()?;
    let captured = message.captured_ports.iter().map(|captured| {
        let number = port(resource, "captured_ports.port", captured.port)?;
        Ok::<_, ParseError>((number, protocol(resource, "captured_ports.protocol", captured.protocol)?))
    });
    Ok(Local {
        identity: identity(resource, message.identity)?,
        spiffe_id: SpiffeId::parse(&message.spiffe_id)
            .map_err(|_| bad(resource, "spiffe_id", &message.spiffe_id, "expected a SPIFFE ID"))?,
        class: message.policy_class,
        captured: captured.collect::<Result<_, _>>()?,
        sidecar: message.sidecar,
        audit: message.audit,
        host_ports,
        readiness: message.readiness.map(|told| readiness(resource, told)).transpose()?,
    })
}

pub(super) fn host(_: &str, message: wire::HostEndpoint) -> Result<Host, ParseError> {
    Ok(Host { class: message.policy_class, audit: message.audit })
}

/// Between two probes of a workload, whatever is asked for.
const PERIODS: std::ops::RangeInclusive<u32> = 100..=3_600_000;
/// Where none is asked for: Kubernetes' own.
const PERIOD: u32 = 10_000;
const FAILURES: u32 = 3;

fn readiness(resource: &str, message: wire::Readiness) -> Result<Readiness, ParseError> {
    let (asked, number) = match (message.tcp_port, message.http_port) {
        (tcp, 0) => (Asked::Tcp, port(resource, "readiness.tcp_port", tcp)?),
        (0, http) => {
            let path = if message.http_path.is_empty() { "/" } else { message.http_path.as_str() };
            // It becomes part of a request's first line.
            if !path.starts_with('/')
                || path.len() > 1024
                || !path.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(bad(resource, "readiness.http_path", path, "expected a path of visible ASCII"));
            }
            (Asked::Http(path.to_owned()), port(resource, "readiness.http_port", http)?)
        }
        (_, both) => {
            return Err(bad(resource, "readiness.http_port", both, "expected either this or tcp_port"));
        }
    };
    let period = if message.period_ms == 0 { PERIOD } else { message.period_ms };
    Ok(Readiness {
        asked,
        port: number,
        period: Duration::from_millis(period.clamp(*PERIODS.start(), *PERIODS.end()).into()),
        failures: if message.failures == 0 { FAILURES } else { message.failures },
    })
}

pub(super) fn class(resource: &str, message: wire::PolicyClass) -> Result<Class, ParseError> {
    class_fits(resource, &message.rules)?;
    if message.id != 0 && message.id.to_string() != resource {
        return Err(bad(resource, "id", message.id, "expected the number that is its name"));
    }
    let denied = |denies: bool, provenance: String| denies.then_some(provenance);
    Ok(Class {
        deny_ingress: denied(message.default_deny_ingress, message.ingress_provenance),
        deny_egress: denied(message.default_deny_egress, message.egress_provenance),
        audit_ingress: denied(message.audit_ingress_default, message.audit_ingress_provenance),
        audit_egress: denied(message.audit_egress_default, message.audit_egress_provenance),
        rules: message.rules.into_iter().map(|rule| self::rule(resource, rule)).collect::<Result<_, _>>()?,
    })
}

/// A rule of several peers counts for each of them.
fn class_fits(resource: &str, rules: &[wire::PolicyRule]) -> Result<(), ParseError> {
    let peers = |rule: &wire::PolicyRule| rule.identities.len() + rule.cidrs.len();
    let count: usize = rules.iter().map(|rule| peers(rule).max(1)).sum();
    if count > MAX_CLASS_RULES {
        let (resource, field) = (resource.to_owned(), "rules");
        return Err(ParseError::TooMany { resource, field, count, max: MAX_CLASS_RULES });
    }
    if count <= MAX_CLASS_PEERS {
        return Ok(());
    }
    let identities = rules.iter().flat_map(|rule| rule.identities.iter().chain([&rule.identity]));
    let identities: BTreeSet<u32> = identities.copied().filter(|identity| *identity != 0).collect();
    let cidrs = rules.iter().flat_map(|rule| rule.cidrs.iter().chain([&rule.cidr]));
    let cidrs: BTreeSet<&str> = cidrs.map(String::as_str).filter(|cidr| !cidr.is_empty()).collect();
    let count = identities.len() + cidrs.len();
    if count > MAX_CLASS_PEERS {
        let (resource, field) = (resource.to_owned(), "peers of rules");
        return Err(ParseError::TooMany { resource, field, count, max: MAX_CLASS_PEERS });
    }
    Ok(())
}

fn rule(resource: &str, message: wire::PolicyRule) -> Result<Rule, ParseError> {
    let direction = match wire::Direction::try_from(message.direction) {
        Ok(wire::Direction::Ingress) => Direction::Ingress,
        Ok(wire::Direction::Egress) => Direction::Egress,
        Err(_) => {
            return Err(bad(resource, "rules.direction", message.direction, "expected INGRESS or EGRESS"));
        }
    };
    let (allow, is_group) = match wire::Action::try_from(message.action) {
        Ok(wire::Action::Allow | wire::Action::QualifiedAllow) => (true, false),
        Ok(wire::Action::Deny | wire::Action::QualifiedDeny) => (false, false),
        Ok(wire::Action::GroupAllow) => (true, true),
        Ok(wire::Action::GroupDeny) => (false, true),
        Err(_) => {
            let wanted = "expected an action of isthmus.agent.v1 that this agent knows";
            return Err(bad(resource, "rules.action", message.action, wanted));
        }
    };
    let l7 = message.l7.as_ref().map(|l7| self::l7(resource, l7, direction, allow)).transpose()?;
    let protocol = protocol(resource, "rules.protocol", message.protocol)?;
    Ok(Rule {
        direction,
        allow,
        audit: message.audit,
        peer: if is_group { group(resource, &message)? } else { peer(resource, &message)? },
        protocol,
        ports: if message.icmp_type == 0 && message.icmp_code == 0 {
            ports(resource, &message)?
        } else {
            Some(icmp(resource, &message, protocol)?)
        },
        l7,
        provenance: message.provenance,
    })
}

/// What can't be redirected must not be allowed as a whole.
fn l7(resource: &str, message: &wire::L7, direction: Direction, allow: bool) -> Result<L7, ParseError> {
    at_most(resource, "rules.l7.dns", &message.dns, MAX_LIST)?;
    if !allow {
        return Err(bad(resource, "rules.l7", "set", "but the rule denies"));
    }
    match (message.dns.as_slice(), message.proxy.as_str()) {
        ([], "") => Err(bad(resource, "rules.l7", "", "expected names or a proxy")),
        (names, "") if direction == Direction::Egress => Ok(L7::Dns(
            names.iter().map(|name| pattern(resource, "rules.l7.dns", name)).collect::<Result<_, _>>()?,
        )),
        (_, "") => Err(bad(resource, "rules.l7.dns", "set", "but the rule is not about egress")),
        ([], proxy) => Ok(L7::Proxy(
            dns_name(proxy)
                .map_err(|_| bad(resource, "rules.l7.proxy", proxy, "expected the name of a proxy"))?,
        )),
        (_, proxy) => Err(bad(resource, "rules.l7.proxy", proxy, "but names are set as well")),
    }
}

fn pattern(
    resource: &str,
    field: &'static str,
    message: &wire::NamePattern,
) -> Result<NamePattern, ParseError> {
    let wanted = "expected either a name or a pattern of names";
    match (message.name.as_str(), message.pattern.as_str()) {
        (name, "") => NamePattern::exact(name).map_err(|_| bad(resource, field, name, wanted)),
        ("", pattern) => NamePattern::parse(pattern).map_err(|_| bad(resource, field, pattern, wanted)),
        (name, _) => Err(bad(resource, field, name, wanted)),
    }
}

/// Several peers. Of none, a rule would be about whoever to those who read it as another action.
fn group(resource: &str, message: &wire::PolicyRule) -> Result<Peer, ParseError> {
    let is_alone = message.identity == 0
        && message.cidr.is_empty()
        && message.entity == 0
        && message.name.is_none()
        && message.identities.is_empty() != message.cidrs.is_empty();
    if !is_alone {
        let wanted = "expected identities or cidrs, and no other peer, of the actions of groups";
        return Err(bad(resource, "rules.identities", message.identities.len(), wanted));
    }
    if message.cidrs.is_empty() {
        let identities = message.identities.iter().map(|number| identity(resource, *number));
        return Ok(Peer::Identities(identities.collect::<Result<_, _>>()?));
    }
    let cidrs = message.cidrs.iter().filter_map(|text| outside(resource, "rules.cidrs", text).transpose());
    Ok(Peer::Cidrs(cidrs.collect::<Result<_, _>>()?))
}

/// `None`: nobody, see [`Peer::Nobody`].
fn outside(resource: &str, field: &'static str, text: &str) -> Result<Option<IpNet>, ParseError> {
    match text.parse::<IpNet>() {
        Ok(IpNet::V6(net)) if is_mapped(&net) => Ok(None),
        Ok(net) => Ok(Some(net.trunc())),
        Err(_) => Err(bad(resource, field, text, "expected a CIDR")),
    }
}

fn peer(resource: &str, message: &wire::PolicyRule) -> Result<Peer, ParseError> {
    if !message.identities.is_empty() || !message.cidrs.is_empty() {
        let wanted = "but the action is not one of those of groups";
        return Err(bad(resource, "rules.action", message.action, wanted));
    }
    if let Some(name) = &message.name {
        let is_alone = message.identity == 0 && message.cidr.is_empty() && message.entity == 0;
        if !is_alone || message.direction != wire::Direction::Egress as i32 {
            let wanted = "but another peer is set as well, or the rule is not about egress";
            return Err(bad(resource, "rules.name", "set", wanted));
        }
        return Ok(Peer::Name(pattern(resource, "rules.name", name)?));
    }
    let wanted = "expected an entity of isthmus.agent.v1 that this agent knows";
    let entity = wire::Entity::try_from(message.entity)
        .map_err(|_| bad(resource, "rules.entity", message.entity, wanted))?;
    let entity = match entity {
        wire::Entity::NoEntity => None,
        wire::Entity::World => Some(Entity::World),
        wire::Entity::Host => Some(Entity::Host),
        wire::Entity::RemoteNode => Some(Entity::RemoteNode),
        wire::Entity::Health => Some(Entity::Health),
        wire::Entity::Unmanaged => Some(Entity::Unmanaged),
        wire::Entity::Mesh => Some(Entity::Workloads),
        // Which identities these are, only the control plane knows: it names them.
        wire::Entity::Cluster | wire::Entity::Gateways => {
            return Err(bad(resource, "rules.entity", entity.as_str_name(), wanted));
        }
    };
    match (message.identity, message.cidr.as_str(), entity) {
        (0, "", None) => Ok(Peer::Any),
        (number, "", None) => Ok(Peer::Identity(identity(resource, number)?)),
        (0, "", Some(entity)) => Ok(Peer::Entity(entity)),
        (0, cidr, None) => Ok(outside(resource, "rules.cidr", cidr)?.map_or(Peer::Nobody, Peer::Cidr)),
        (_, cidr, None) => Err(bad(resource, "rules.cidr", cidr, "but identity is set as well")),
        (_, _, Some(_)) => {
            Err(bad(resource, "rules.entity", message.entity, "but another peer is set as well"))
        }
    }
}

fn ports(resource: &str, message: &wire::PolicyRule) -> Result<Option<(u16, u16)>, ParseError> {
    match (message.port, message.end_port) {
        (0, 0) => Ok(None),
        (first, 0) => {
            let first = port(resource, "rules.port", first)?;
            Ok(Some((first, first)))
        }
        (first, last) => {
            let first = port(resource, "rules.port", first)?;
            let last_port = port(resource, "rules.end_port", last)?;
            if last_port < first {
                return Err(bad(resource, "rules.end_port", last, "expected no less than rules.port"));
            }
            Ok(Some((first, last_port)))
        }
    }
}

/// Type and code as policy has them in the place of ports.
fn icmp(resource: &str, message: &wire::PolicyRule, protocol: u8) -> Result<(u16, u16), ParseError> {
    if protocol != ICMP && protocol != ICMPV6 {
        return Err(bad(
            resource,
            "rules.icmp_type",
            message.icmp_type,
            "but the protocol is not ICMP or ICMPV6",
        ));
    }
    if message.port != 0 || message.end_port != 0 {
        return Err(bad(resource, "rules.port", message.port, "but icmp_type is set as well"));
    }
    let byte = |field, number: u32| {
        let byte = number.checked_sub(1).and_then(|number| u8::try_from(number).ok());
        byte.ok_or_else(|| bad(resource, field, number, "expected 1 to 256: one more than it is"))
    };
    let kind = u16::from(byte("rules.icmp_type", message.icmp_type)?) << 8;
    match message.icmp_code {
        0 => Ok((kind, kind | 0xff)),
        code => {
            let exact = kind | u16::from(byte("rules.icmp_code", code)?);
            Ok((exact, exact))
        }
    }
}

pub(super) fn bundle(resource: &str, message: wire::TrustBundle) -> Result<Bundle, ParseError> {
    at_most(resource, "revoked", &message.revoked, MAX_REVOKED)?;
    at_most(resource, "jwt_keys", &message.jwt_keys, MAX_JWT_KEYS)?;
    let domain = trust_domain(resource)?;
    let jwt_keys = message.jwt_keys.iter().map(|point| {
        JwtPublicKey::from_point(point)
            .map_err(|error| bad(resource, "jwt_keys", error, "expected points of P-256"))
    });
    let jwt_keys = jwt_keys.collect::<Result<Vec<_>, _>>()?;
    let roots: Vec<_> = message.roots.iter().cloned().map(mesh_tls::CertificateDer::from).collect();
    mesh_tls::TrustBundles::new()
        .insert(domain, roots)
        .map_err(|error| bad(resource, "roots", error, "expected root certificates of the trust domain"))?;
    Ok(Bundle {
        roots: message.roots,
        generation: message.generation,
        active_root: message.active_root,
        revoked: message.revoked.into_iter().collect(),
        jwt_keys,
    })
}

pub(super) fn node(resource: &str, message: wire::Node) -> Result<NodeRoute, ParseError> {
    at_most(resource, "pod_cidrs", &message.pod_cidrs, MAX_LIST)?;
    let address = message
        .address
        .parse::<Ipv4Addr>()
        .map_err(|_| bad(resource, "address", &message.address, "expected an IPv4 address"))?;
    let mut pod_cidrs = Vec::new();
    for text in &message.pod_cidrs {
        match text.parse::<IpNet>() {
            // A shorter prefix would take over routes that are not the mesh's.
            Ok(IpNet::V4(net)) if net.prefix_len() >= 8 => pod_cidrs.push(net.trunc().into()),
            Ok(IpNet::V6(net)) if net.prefix_len() >= 32 && !is_mapped(&net) => {
                pod_cidrs.push(net.trunc().into());
            }
            _ => {
                let wanted = "expected a CIDR of /8 (IPv6: /32) or longer";
                return Err(bad(resource, "pod_cidrs", text, wanted));
            }
        }
    }
    let address6 = match message.address6.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| bad(resource, "address6", text, "expected an IPv6 address"))?),
    };
    let addresses = addresses(resource, &message.addresses)?;
    let tunnel = match message.tunnel.as_str() {
        "" => None,
        text => {
            let known = Tunnel::from_name(text);
            Some(known.ok_or_else(|| bad(resource, "tunnel", text, "expected vxlan or direct"))?)
        }
    };
    Ok(NodeRoute { address, address6, pod_cidrs, addresses, zone: message.zone, tunnel })
}
