//! From a name and a type to what is known of it.

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::rr::RecordType;

use super::{
    MAX_ADDRESSES,
    zone::{Domain, Domains, NamedEndpoint, NamedService, Zone, undashed},
};

/// Of the specification.
const SCHEMA: &str = "1.1.0";
/// RFC 2782 leaves it to us, and all are alike.
const WEIGHT: u16 = 100;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Address(IpAddr),
    Service { weight: u16, port: u16, target: String },
    Pointer(String),
    Text(&'static str),
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Records of the name, and addresses of the names in them.
    Records(Vec<Data>, Vec<(String, IpAddr)>),
    /// The name is there, and has nothing of this type.
    NoData(String),
    /// There is no such name in a domain of ours, which this is.
    NoName(String),
    /// It is not ours.
    Elsewhere,
}

/// Looks a name up: its labels in lower case.
pub(super) fn lookup(zone: &Zone, domains: &Domains, labels: &[String], kind: RecordType) -> Found {
    if let Some(address) = reversed(labels) {
        return pointer(zone, domains, address, kind);
    }
    let Some((domain, count)) = domains.of(labels) else { return Found::Elsewhere };
    let own = labels.len() - count;
    let inside: Vec<&str> = labels.iter().take(own).map(String::as_str).collect();
    let seen = View { zone, domain, text: domains.text(domain), cluster_id: &domains.cluster_id };
    seen.look(&inside, kind)
}

/// One domain.
struct View<'a> {
    zone: &'a Zone,
    domain: Domain,
    text: &'a str,
    cluster_id: &'a str,
}

impl View<'_> {
    fn look(&self, inside: &[&str], kind: RecordType) -> Found {
        match inside {
            [] | ["svc"] => self.no_data(),
            ["pod"] if self.domain == Domain::Cluster => self.no_data(),
            ["dns-version"] if kind == RecordType::TXT => Found::Records(vec![Data::Text(SCHEMA)], vec![]),
            ["dns-version"] => self.no_data(),
            [namespace, "svc"] if self.zone.has_namespace(self.domain, namespace) => self.no_data(),
            [address, _, "pod"] if self.domain == Domain::Cluster => match undashed(address) {
                Some(address) => self.addresses(vec![address], kind),
                None => self.no_name(),
            },
            [below @ .., name, namespace, "svc"] => match self.zone.service(self.domain, namespace, name) {
                Some(service) => self.service(service, below, &format!("{name}.{namespace}.svc"), kind),
                None => self.no_name(),
            },
            _ => self.no_name(),
        }
    }

    /// The name of a service, or one below it.
    fn service(&self, service: &NamedService, below: &[&str], called: &str, kind: RecordType) -> Found {
        match below {
            [] if service.headless && service.all_endpoints().next().is_none() => self.no_name(),
            [] => self.addresses(service.all_addresses(), kind),
            [port, protocol] if port.starts_with('_') => self.port(service, port, protocol, called, kind),
            // The name between is there if one below it is.
            [protocol] if protocol.starts_with('_') => {
                let named = service.ports.iter().filter(|port| !port.name.is_empty());
                let is_there = named.clone().any(|port| protocol.strip_prefix('_') == Some(port.protocol));
                if is_there { self.no_data() } else { self.no_name() }
            }
            [host] if self.domain != Domain::Set => self.host(service, host, kind),
            [host, cluster] if self.domain == Domain::Set && *cluster == self.cluster_id => {
                self.host(service, host, kind)
            }
            [cluster]
                if self.domain == Domain::Set
                    && *cluster == self.cluster_id
                    && service.all_endpoints().next().is_some() =>
            {
                self.no_data()
            }
            _ => self.no_name(),
        }
    }

    fn host(&self, service: &NamedService, host: &str, kind: RecordType) -> Found {
        let of_it = service.all_endpoints().filter(|endpoint| endpoint.label() == host);
        let addresses: BTreeSet<IpAddr> = of_it.map(|endpoint| endpoint.address).collect();
        if addresses.is_empty() {
            return self.no_name();
        }
        self.addresses(addresses.into_iter().collect(), kind)
    }

    fn port(
        &self,
        service: &NamedService,
        port: &str,
        protocol: &str,
        called: &str,
        kind: RecordType,
    ) -> Found {
        let (name, protocol) = (port.strip_prefix('_'), protocol.strip_prefix('_'));
        let same = service.ports.iter().find(|port| {
            !port.name.is_empty() && name == Some(port.name.as_str()) && protocol == Some(port.protocol)
        });
        let Some(port) = same else { return self.no_name() };
        let service_name = format!("{called}.{}", self.text);
        let record =
            |port: u16, target: String| Data::Service { weight: WEIGHT, port, target: format!("{target}.") };
        let (records, further): (Vec<Data>, Vec<(String, IpAddr)>) = if service.headless {
            let called = |endpoint: &NamedEndpoint| match self.domain {
                Domain::Set => format!("{}.{}.{service_name}", endpoint.label(), self.cluster_id),
                Domain::Cluster | Domain::Mesh => format!("{}.{service_name}", endpoint.label()),
            };
            // One for each name and port: a host of two addresses is one.
            let hosts: BTreeSet<(String, u16)> =
                port.endpoints.iter().map(|endpoint| (called(endpoint), endpoint.port)).collect();
            let hosts = hosts.into_iter().take(MAX_ADDRESSES);
            let at = port.endpoints.iter().take(MAX_ADDRESSES);
            (
                hosts.map(|(name, port)| record(port, name)).collect(),
                at.map(|endpoint| (format!("{}.", called(endpoint)), endpoint.address)).collect(),
            )
        } else {
            let further = service.addresses.iter().map(|address| (format!("{service_name}."), *address));
            let further = further.collect();
            (vec![record(port.port, service_name.clone())], further)
        };
        if records.is_empty() {
            return self.no_name();
        }
        match kind {
            RecordType::SRV | RecordType::ANY => Found::Records(records, further),
            _ => self.no_data(),
        }
    }

    fn addresses(&self, all: Vec<IpAddr>, kind: RecordType) -> Found {
        let wanted = |address: &IpAddr| match kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let records: Vec<Data> = all.into_iter().filter(wanted).map(Data::Address).collect();
        if records.is_empty() { self.no_data() } else { Found::Records(records, Vec::new()) }
    }

    fn no_data(&self) -> Found {
        Found::NoData(self.text.to_owned())
    }

    fn no_name(&self) -> Found {
        Found::NoName(self.text.to_owned())
    }
}

/// The names of an address. Of what is not a service's somebody else may know more.
fn pointer(zone: &Zone, domains: &Domains, address: IpAddr, kind: RecordType) -> Found {
    let mut names = BTreeSet::new();
    for (name, service) in zone.at(address) {
        let domain = if service.is_in(Domain::Cluster) { Domain::Cluster } else { Domain::Set };
        let called = format!("{}.{}.svc.{}.", name.name, name.namespace, domains.text(domain));
        if service.addresses.contains(&address) {
            names.insert(called.clone());
        }
        let hosts = service.all_endpoints().filter(|endpoint| endpoint.address == address);
        names.extend(hosts.map(|endpoint| format!("{}.{called}", endpoint.label())));
    }
    if names.is_empty() {
        return Found::Elsewhere;
    }
    match kind {
        RecordType::PTR | RecordType::ANY => {
            Found::Records(names.into_iter().map(Data::Pointer).collect(), Vec::new())
        }
        _ => Found::NoData(domains.cluster.clone()),
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is about, if it is about one alone (RFC 1035, 3.5; RFC
/// 3596, 2.5).
fn reversed(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [digits @ .., "in-addr", "arpa"] if digits.len() == 4 => {
            let text: Vec<&str> = digits.iter().rev().copied().collect();
            text.join(".").parse().ok().map(IpAddr::V4)
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let mut number = 0_u128;
            for digit in digits.iter().rev() {
                let value = u8::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?;
                number = number << 4 | u128::from(value);
            }
            Some(IpAddr::V6(number.into()))
        }
        _ => None,
    }
}
