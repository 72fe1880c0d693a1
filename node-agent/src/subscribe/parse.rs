//! Wire to value, for each of the agent's types. PURE. What can't be read is refused, never widened.

use std::net::{IpAddr, Ipv4Addr};

use ebpf_shared::Direction;
use ipnet::{IpNet, Ipv6Net};
use mesh_model::{
    identity::{MAX_IDENTITY, SpiffeId, TrustDomain},
    resource::NamespacedName,
};
use thiserror::Error;
use xds_proto::isthmus::agent::v1 as wire;

use super::resources::{Address, Bundle, Class, Local, NodeRoute, Peer, Rule};
use super::services::host_port;
use crate::config::{dns_label, dns_name};

/// Most rules of one class: each becomes at most 30 entries of the kernel's trie.
const MAX_RULES: usize = 16_384;
/// Most ports of a service, captured ports of a workload, addresses of anything.
pub(super) const MAX_LIST: usize = 1_024;
/// Revoked registrations of one trust domain: what a control plane remembers at most.
const MAX_REVOKED: usize = 10_000;

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

fn identity(resource: &str, number: u32) -> Result<u32, ParseError> {
    if (1..=MAX_IDENTITY).contains(&number) {
        return Ok(number);
    }
    Err(bad(resource, "identity", number, "expected 1 to 16777215"))
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
        host_ports,
    })
}

pub(super) fn class(resource: &str, message: wire::PolicyClass) -> Result<Class, ParseError> {
    at_most(resource, "rules", &message.rules, MAX_RULES)?;
    let denied = |denies: bool, provenance: String| denies.then_some(provenance);
    Ok(Class {
        deny_ingress: denied(message.default_deny_ingress, message.ingress_provenance),
        deny_egress: denied(message.default_deny_egress, message.egress_provenance),
        rules: message.rules.into_iter().map(|rule| self::rule(resource, rule)).collect::<Result<_, _>>()?,
    })
}

fn rule(resource: &str, message: wire::PolicyRule) -> Result<Rule, ParseError> {
    let direction = match wire::Direction::try_from(message.direction) {
        Ok(wire::Direction::Ingress) => Direction::Ingress,
        Ok(wire::Direction::Egress) => Direction::Egress,
        Err(_) => {
            return Err(bad(resource, "rules.direction", message.direction, "expected INGRESS or EGRESS"));
        }
    };
    let allow = match wire::Action::try_from(message.action) {
        Ok(wire::Action::Allow) => true,
        Ok(wire::Action::Deny) => false,
        // Without the fields that qualify it, the rule would be wider than it is.
        Ok(wire::Action::QualifiedDeny | wire::Action::QualifiedAllow) | Err(_) => {
            return Err(bad(resource, "rules.action", message.action, "expected DENY or ALLOW"));
        }
    };
    let peer = match (message.identity, message.cidr.as_str()) {
        (0, "") => Peer::Any,
        (number, "") => Peer::Identity(identity(resource, number)?),
        (0, cidr) => match cidr.parse::<IpNet>() {
            Ok(IpNet::V6(net)) if is_mapped(&net) => Peer::Nobody,
            Ok(net) => Peer::Cidr(net.trunc()),
            Err(_) => return Err(bad(resource, "rules.cidr", cidr, "expected a CIDR")),
        },
        (_, cidr) => return Err(bad(resource, "rules.cidr", cidr, "but identity is set as well")),
    };
    let ports = match (message.port, message.end_port) {
        (0, 0) => None,
        (first, 0) => {
            let first = port(resource, "rules.port", first)?;
            Some((first, first))
        }
        (first, last) => {
            let first = port(resource, "rules.port", first)?;
            let last_port = port(resource, "rules.end_port", last)?;
            if last_port < first {
                return Err(bad(resource, "rules.end_port", last, "expected no less than rules.port"));
            }
            Some((first, last_port))
        }
    };
    Ok(Rule {
        direction,
        allow,
        peer,
        protocol: protocol(resource, "rules.protocol", message.protocol)?,
        ports,
        provenance: message.provenance,
    })
}

pub(super) fn bundle(resource: &str, message: wire::TrustBundle) -> Result<Bundle, ParseError> {
    at_most(resource, "revoked", &message.revoked, MAX_REVOKED)?;
    let domain = trust_domain(resource)?;
    let roots: Vec<_> = message.roots.iter().cloned().map(mesh_tls::CertificateDer::from).collect();
    mesh_tls::TrustBundles::new()
        .insert(domain, roots)
        .map_err(|error| bad(resource, "roots", error, "expected root certificates of the trust domain"))?;
    Ok(Bundle {
        roots: message.roots,
        generation: message.generation,
        active_root: message.active_root,
        revoked: message.revoked.into_iter().collect(),
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
    Ok(NodeRoute { address, address6, pod_cidrs, zone: message.zone })
}
