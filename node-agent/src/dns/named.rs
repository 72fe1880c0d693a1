//! Services as they have names, between the agent and the process that answers them. PURE.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use dns_proxy::cluster::{NamedEndpoint, NamedPort, NamedService};
use mesh_model::resource::NamespacedName;
use xds_proto::isthmus::local::v1::{DnsEndpoint, DnsNames, DnsService, DnsServicePort};

use crate::subscribe::{BackendState, Service, ServiceBackend};

/// Services by name.
pub type Services = BTreeMap<NamespacedName, Arc<Service>>;

/// What has changed since `last`, which is then what there is now; all of it if there is none. `None`: nothing has.
pub fn difference(last: &mut Option<Services>, now: &Services) -> Option<DnsNames> {
    let Some(known) = last else {
        let services = now.iter().map(|(name, service)| told(name, service)).collect();
        *last = Some(now.clone());
        return Some(DnsNames { whole: true, services, gone: Vec::new() });
    };
    let gone: Vec<NamespacedName> = known.keys().filter(|name| !now.contains_key(name)).cloned().collect();
    let is_new = |name: &NamespacedName, service: &Arc<Service>| {
        known.get(name).is_none_or(|known| !Arc::ptr_eq(known, service))
    };
    let new: Vec<_> = now.iter().filter(|(name, service)| is_new(name, service)).collect();
    if gone.is_empty() && new.is_empty() {
        return None;
    }
    let services = new.iter().map(|(name, service)| told(name, service)).collect();
    for (name, service) in new {
        known.insert(name.clone(), service.clone());
    }
    gone.iter().for_each(|name| drop(known.remove(name)));
    let gone = gone.iter().map(ToString::to_string).collect();
    Some(DnsNames { whole: false, services, gone })
}

/// One service.
pub fn told(name: &NamespacedName, service: &Service) -> DnsService {
    let endpoint = |backend: &ServiceBackend| DnsEndpoint {
        address: backend.address.to_string(),
        port: backend.port.into(),
        hostname: String::from(&*backend.hostname),
    };
    // What peers have is behind their nodes, at other ports.
    let is_named = |backend: &&ServiceBackend| {
        service.headless && backend.state == BackendState::Active && !backend.elsewhere
    };
    let ports = service.ports.iter().map(|port| DnsServicePort {
        name: port.name.clone(),
        port: port.port.into(),
        protocol: port.protocol.into(),
        endpoints: port.backends.iter().filter(is_named).map(endpoint).collect(),
    });
    let bare = service.named.iter().map(|named| DnsEndpoint {
        address: named.address.to_string(),
        port: 0,
        hostname: String::from(&*named.hostname),
    });
    DnsService {
        name: name.to_string(),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        headless: service.headless,
        exported: service.exported,
        imported: service.imported,
        ports: ports.collect(),
        endpoints: bare.collect(),
    }
}

/// Reads one. `None`: it is none that an agent tells.
pub fn read(wire: &DnsService) -> Option<(NamespacedName, NamedService)> {
    let address = |text: &String| text.parse::<IpAddr>().ok();
    let endpoint = |wire: &DnsEndpoint| {
        let hostname = (!wire.hostname.is_empty()).then(|| wire.hostname.clone());
        Some(NamedEndpoint {
            address: address(&wire.address)?,
            hostname,
            port: u16::try_from(wire.port).ok()?,
        })
    };
    let port = |wire: &DnsServicePort| {
        let protocol = match wire.protocol {
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => return None,
        };
        Some(NamedPort {
            name: wire.name.clone(),
            port: u16::try_from(wire.port).ok()?,
            protocol,
            endpoints: wire.endpoints.iter().map(endpoint).collect::<Option<_>>()?,
        })
    };
    let service = NamedService {
        addresses: wire.addresses.iter().map(address).collect::<Option<_>>()?,
        headless: wire.headless,
        exported: wire.exported,
        imported: wire.imported,
        ports: wire.ports.iter().map(port).collect::<Option<_>>()?,
        endpoints: wire.endpoints.iter().map(endpoint).collect::<Option<_>>()?,
    };
    Some((NamespacedName::parse(&wire.name)?, service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::{Named, ServicePort};

    fn backend(last: u8, state: BackendState) -> ServiceBackend {
        ServiceBackend {
            address: [10, 1, 1, last].into(),
            port: 5432,
            hostname: format!("db-{last}").into(),
            state,
            ..ServiceBackend::default()
        }
    }

    fn headless() -> Service {
        let far = ServiceBackend { elsewhere: true, ..backend(9, BackendState::Active) };
        let backends = vec![
            backend(1, BackendState::Active),
            backend(2, BackendState::NotReady),
            backend(3, BackendState::Terminating),
            far,
        ];
        Service {
            headless: true,
            exported: true,
            ports: vec![ServicePort {
                port: 80,
                protocol: 6,
                name: "sql".into(),
                backends,
                ..ServicePort::default()
            }],
            named: vec![Named { address: [10, 1, 1, 7].into(), hostname: "".into() }],
            ..Service::default()
        }
    }

    fn name(text: &str) -> NamespacedName {
        NamespacedName::new("shop", text)
    }

    #[test]
    fn a_headless_service_is_its_ready_endpoints_here_and_another_its_addresses() {
        let (called, read_back) = read(&told(&name("db"), &headless())).unwrap();
        assert_eq!(called, name("db"));
        let endpoint = |last: u8, hostname: Option<&str>, port| NamedEndpoint {
            address: [10, 1, 1, last].into(),
            hostname: hostname.map(str::to_owned),
            port,
        };
        let expected = NamedService {
            headless: true,
            exported: true,
            ports: vec![NamedPort {
                name: "sql".into(),
                port: 80,
                protocol: "tcp",
                endpoints: vec![endpoint(1, Some("db-1"), 5432)],
            }],
            endpoints: vec![endpoint(7, None, 0)],
            ..NamedService::default()
        };
        assert_eq!(read_back, expected);
        let ordinary =
            Service { headless: false, addresses: vec![[10, 101, 0, 1].into()], named: vec![], ..headless() };
        let (_, read_back) = read(&told(&name("db"), &ordinary)).unwrap();
        assert_eq!(read_back.addresses, ordinary.addresses);
        assert!(read_back.ports[0].endpoints.is_empty());
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut last = None;
        let mut now = Services::from([(name("a"), Arc::new(headless())), (name("b"), Arc::default())]);
        let mut names = |now: &Services| {
            let told = difference(&mut last, now)?;
            let services: Vec<_> = told.services.into_iter().map(|service| service.name).collect();
            Some((told.whole, services, told.gone))
        };
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&now), Some((true, owned(&["shop/a", "shop/b"]), vec![])));
        assert_eq!(names(&now), None);
        now.insert(name("b"), Arc::new(headless()));
        now.remove(&name("a"));
        assert_eq!(names(&now), Some((false, owned(&["shop/b"]), owned(&["shop/a"]))));
        assert_eq!(names(&now), None);
    }

    #[test]
    fn what_no_agent_tells_is_not_read() {
        let spoilt = |change: fn(&mut DnsService)| {
            let mut wire = told(&name("db"), &headless());
            change(&mut wire);
            read(&wire).is_none()
        };
        assert!(!spoilt(|_| ()));
        assert!(spoilt(|wire| wire.name = "db".into()));
        assert!(spoilt(|wire| wire.addresses.push("x".into())));
        assert!(spoilt(|wire| wire.ports[0].protocol = 1));
        assert!(spoilt(|wire| wire.ports[0].port = 70_000));
        assert!(spoilt(|wire| wire.endpoints[0].address = "x".into()));
    }
}
