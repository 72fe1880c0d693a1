//! What a peer offers, checked, and merged with what others offer under the same name.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use mesh_model::{
    identity::{Role, SpiffeId, TrustDomain},
    records::{ImportedPort, ImportedService, PacketEntry},
    resource::{AppProtocol, NamespacedName, Protocol, Visibility},
};
use thiserror::Error;
use xds_proto::isthmus::federation::v1::{self as wire, ExportedPort, ExportedService};

use crate::{
    export::{NOBODY, app_protocol_text, protocol_text},
    names::{is_dns_label, shown},
};

/// Most node ports of an imported service.
pub use mesh_model::limits::MAX_ENTRIES_PER_IMPORT as MAX_ENTRIES;
/// Most namespaces that may know of an imported service, where not all may.
pub use mesh_model::limits::MAX_EXPORT_TO;
/// Most identities that may serve an imported service.
pub use mesh_model::limits::MAX_IDENTITIES_PER_IMPORT as MAX_SPIFFE_IDS;
/// Most services that one peer may offer.
pub use mesh_model::limits::MAX_IMPORTS_PER_PEER as MAX_SERVICES;
/// Most ports of an imported service.
pub use mesh_model::limits::MAX_PORTS_PER_IMPORT as MAX_PORTS;

/// Why an offered service is refused. The peer's other services are not touched.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("imported service {service:?}: {field} {value:?} {problem}")]
pub struct ImportError {
    /// `<namespace>/<name>`, shortened.
    pub service: String,
    /// As in the proto, with an index where it is a list.
    pub field: String,
    /// What stands there, shortened.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks a service that the peer of a trust domain offers. Only identities of *that* domain are accepted: a
/// peer says who serves a name in its own cluster and nowhere else.
///
/// # Errors
/// Names the field and the value.
pub fn import_service(
    received: &ExportedService,
    peer: &TrustDomain,
) -> Result<(NamespacedName, ImportedService), ImportError> {
    let bad = |field: String, value: &str, problem: &str| ImportError {
        service: shown(&format!("{}/{}", received.namespace, received.name)),
        field,
        value: shown(value),
        problem: problem.to_owned(),
    };
    for (field, value) in [("namespace", &received.namespace), ("name", &received.name)] {
        if !is_dns_label(value) {
            return Err(bad(field.to_owned(), value, "is no DNS label"));
        }
    }
    if received.ports.is_empty() || received.ports.len() > MAX_PORTS {
        let count = received.ports.len().to_string();
        return Err(bad("ports".to_owned(), &count, "entries are not within 1 and 64"));
    }
    let mut ports = Vec::with_capacity(received.ports.len());
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in received.ports.iter().enumerate() {
        let port = import_port(port)
            .map_err(|(field, value, problem)| bad(format!("ports[{i}].{field}"), &value, problem))?;
        if !names.insert(port.name.clone()) {
            return Err(bad(format!("ports[{i}].name"), &port.name, "is used twice"));
        }
        if !numbers.insert((port.port, port.protocol)) {
            return Err(bad(format!("ports[{i}].port"), &port.port.to_string(), "is used twice"));
        }
        ports.push(port);
    }
    let entries =
        import_entries(&received.entries).map_err(|(field, value, problem)| bad(field, &value, problem))?;
    // Who serves at node ports proves nothing.
    let by_packets = |port: &ImportedPort| {
        entries.iter().any(|entry| (entry.port, entry.protocol) == (port.port, port.protocol))
    };
    let unproven = ports.iter().all(by_packets);
    if (received.spiffe_ids.is_empty() && !unproven) || received.spiffe_ids.len() > MAX_SPIFFE_IDS {
        let count = received.spiffe_ids.len().to_string();
        return Err(bad("spiffe_ids".to_owned(), &count, "entries are not within 1 and 256"));
    }
    let mut spiffe_ids = BTreeSet::new();
    for (i, text) in received.spiffe_ids.iter().enumerate() {
        let field = || format!("spiffe_ids[{i}]");
        let id = SpiffeId::parse(text).map_err(|e| bad(field(), text, &format!("is invalid: {e}")))?;
        if id.trust_domain() != peer {
            return Err(bad(field(), text, &format!("is not of the peer's trust domain {peer}")));
        }
        if !matches!(id.role(), Role::Workload { .. }) {
            return Err(bad(field(), text, "is not the identity of a workload"));
        }
        spiffe_ids.insert(id);
    }
    if received.export_to.len() > MAX_EXPORT_TO {
        let count = received.export_to.len().to_string();
        return Err(bad("export_to".to_owned(), &count, "entries are more than 100"));
    }
    let visibility = match received.export_to.as_slice() {
        [] => Visibility::Everywhere,
        [nobody] if nobody == NOBODY => Visibility::Only(BTreeSet::new()),
        namespaces => {
            if let Some(i) = namespaces.iter().position(|namespace| !is_dns_label(namespace)) {
                return Err(bad(format!("export_to[{i}]"), &namespaces[i], "is no DNS label"));
            }
            Visibility::Only(namespaces.iter().cloned().collect())
        }
    };
    let service = ImportedService {
        ports,
        spiffe_ids: spiffe_ids.into_iter().collect(),
        ready_endpoints: received.ready_endpoints,
        exported_at_unix: received.exported_at_unix,
        visibility,
        entries,
    };
    Ok((NamespacedName::new(&received.namespace, &received.name), service))
}

fn import_entries(
    received: &[wire::PacketEntry],
) -> Result<Vec<PacketEntry>, (String, String, &'static str)> {
    if received.len() > MAX_ENTRIES {
        return Err(("entries".to_owned(), received.len().to_string(), "entries are more than 1024"));
    }
    let parse = |(i, entry): (usize, &wire::PacketEntry)| {
        let bad =
            |field: &str, value: &str, problem| (format!("entries[{i}].{field}"), value.to_owned(), problem);
        let port = u16::try_from(entry.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| bad("port", &entry.port.to_string(), "is not within 1 and 65535"))?;
        let protocol = protocol_of(&entry.protocol)
            .ok_or_else(|| bad("protocol", &entry.protocol, "is not TCP, UDP or SCTP"))?;
        let at = entry.at.parse::<SocketAddr>().ok().filter(|at| at.port() != 0);
        let at = at.ok_or_else(|| bad("at", &entry.at, "is not <address>:<port>"))?;
        if !is_of_a_node(at.ip()) {
            return Err(bad("at", &entry.at, "is no address that a node can have"));
        }
        Ok(PacketEntry { port, protocol, at })
    };
    received.iter().enumerate().map(parse).collect()
}

/// Whether packets to an address can leave the host that sends them.
fn is_of_a_node(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
}

fn protocol_of(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| protocol_text(*p) == text)
}

fn import_port(port: &ExportedPort) -> Result<ImportedPort, (&'static str, String, &'static str)> {
    // Kubernetes allows an empty name only for a single port; two empty ones are found as duplicates.
    if !port.name.is_empty() && !is_dns_label(&port.name) {
        return Err(("name", port.name.clone(), "is no DNS label"));
    }
    let number = u16::try_from(port.port)
        .ok()
        .filter(|p| *p != 0)
        .ok_or_else(|| ("port", port.port.to_string(), "is not within 1 and 65535"))?;
    let protocol = protocol_of(&port.protocol)
        .ok_or_else(|| ("protocol", port.protocol.clone(), "is not TCP, UDP or SCTP"))?;
    let app_protocol = [AppProtocol::Http, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Tcp]
        .into_iter()
        .find(|p| app_protocol_text(*p) == port.app_protocol)
        .ok_or_else(|| ("app_protocol", port.app_protocol.clone(), "is not http, http2, grpc or tcp"))?;
    Ok(ImportedPort { name: port.name.clone(), port: number, protocol, app_protocol })
}

/// One cluster's part in a service of several.
#[derive(Debug, Clone, Copy)]
pub struct Constituent<'a> {
    /// Who exports it.
    pub cluster: &'a str,
    /// What it exports.
    pub service: &'a ImportedService,
}

/// The ports of a service that several clusters export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedPorts {
    /// In the order of the clusters' precedence.
    pub ports: Vec<ImportedPort>,
    /// What lost, for the status of the export (KEP-1645: condition `Conflict`).
    pub conflicts: Vec<PortConflict>,
}

/// A port whose definition lost to an older export's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("port {name:?} of {loser} differs from that of {winner}, whose export is older")]
pub struct PortConflict {
    /// The port's name.
    pub name: String,
    /// Whose definition holds.
    pub winner: String,
    /// Whose is ignored.
    pub loser: String,
}

/// Joins the ports of all clusters that export one name (KEP-1645, "Service Port"): the union, and where two
/// clusters define a name or a number differently, the older export's definition. Equal ages are decided by
/// the clusters' names, so that every cluster comes to the same result.
pub fn merge_ports<'a>(constituents: impl IntoIterator<Item = Constituent<'a>>) -> MergedPorts {
    let mut all: Vec<_> = constituents.into_iter().collect();
    all.sort_by_key(|c| (c.service.exported_at_unix, c.cluster));
    let mut merged = MergedPorts { ports: Vec::new(), conflicts: Vec::new() };
    let mut owners: Vec<&str> = Vec::new();
    for constituent in all {
        for port in &constituent.service.ports {
            let same = |held: &ImportedPort| {
                held.name == port.name || (held.port == port.port && held.protocol == port.protocol)
            };
            match merged.ports.iter().position(same) {
                Some(i) if &merged.ports[i] == port => {}
                Some(i) => merged.conflicts.push(PortConflict {
                    name: port.name.clone(),
                    winner: owners[i].to_owned(),
                    loser: constituent.cluster.to_owned(),
                }),
                None => {
                    merged.ports.push(port.clone());
                    owners.push(constituent.cluster);
                }
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn east() -> TrustDomain {
        TrustDomain::parse("east.example").unwrap()
    }

    fn offered() -> ExportedService {
        ExportedService {
            namespace: "shop".into(),
            name: "pay".into(),
            ports: vec![ExportedPort {
                name: "http".into(),
                port: 8080,
                app_protocol: "http".into(),
                protocol: "TCP".into(),
            }],
            spiffe_ids: vec!["spiffe://east.example/ns/shop/sa/pay".into()],
            ready_endpoints: 2,
            origin_revision: 5,
            exported_at_unix: 100,
            export_to: Vec::new(),
            entries: Vec::new(),
        }
    }

    #[test]
    fn a_sound_offer_is_imported() {
        let (name, service) = import_service(&offered(), &east()).unwrap();
        assert_eq!(name, NamespacedName::new("shop", "pay"));
        assert_eq!(service.ports[0].port, 8080);
        assert_eq!(service.ready_endpoints, 2);
    }

    #[test]
    fn who_may_know_of_a_service_arrives_as_it_was_sent() {
        let only = |names: &[&str]| Visibility::Only(names.iter().map(ToString::to_string).collect());
        for visibility in [Visibility::Everywhere, only(&[]), only(&["shop"]), only(&["bank", "shop"])] {
            let offer = ExportedService { export_to: crate::export::export_to(&visibility), ..offered() };
            assert_eq!(import_service(&offer, &east()).unwrap().1.visibility, visibility);
        }
    }

    #[test]
    fn a_peer_cannot_name_identities_of_another_trust_domain_or_of_infrastructure() {
        for id in [
            "spiffe://west.example/ns/shop/sa/pay",
            "spiffe://east.example/isthmus/replica/1",
            "spiffe://east.example",
            "east.example/ns/shop/sa/pay",
        ] {
            let mut offer = offered();
            offer.spiffe_ids.push(id.into());
            let error = import_service(&offer, &east()).unwrap_err();
            assert_eq!(error.field, "spiffe_ids[1]", "{error}");
        }
    }

    #[test]
    fn every_field_is_checked_and_named() {
        type Spoil = fn(&mut ExportedService);
        let cases: [(&str, Spoil); 19] = [
            ("namespace", |s| s.namespace = "a/b".into()),
            ("name", |s| s.name.clear()),
            ("ports", |s| s.ports.clear()),
            ("ports", |s| s.ports = vec![ExportedPort::default(); 65]),
            ("ports[0].name", |s| s.ports[0].name = "HTTP_1".into()),
            ("ports[0].port", |s| s.ports[0].port = 65536),
            ("ports[0].port", |s| s.ports[0].port = 0),
            ("ports[0].protocol", |s| s.ports[0].protocol = "tcp".into()),
            ("ports[0].app_protocol", |s| s.ports[0].app_protocol = "mysql".into()),
            ("ports[1].name", |s| s.ports.push(ExportedPort { port: 1, ..s.ports[0].clone() })),
            ("spiffe_ids", |s| s.spiffe_ids.clear()),
            ("entries", |s| s.entries = vec![entry(8080, "192.0.2.1:30080"); 1_025]),
            ("entries[0].port", |s| s.entries = vec![entry(0, "192.0.2.1:30080")]),
            ("entries[1].at", |s| {
                s.entries = vec![entry(8080, "192.0.2.1:30080"), entry(8080, "127.0.0.1:30080")];
            }),
            ("entries[0].at", |s| s.entries = vec![entry(8080, "169.254.169.254:80")]),
            ("entries[0].at", |s| s.entries = vec![entry(8080, "node:30080")]),
            ("spiffe_ids", |s| {
                s.spiffe_ids.clear();
                s.entries = vec![entry(8081, "192.0.2.1:30080")];
            }),
            ("export_to", |s| s.export_to = vec!["a".into(); 101]),
            ("export_to[1]", |s| s.export_to = vec!["shop".into(), "~".into()]),
        ];
        for (field, spoil) in cases {
            let mut offer = offered();
            spoil(&mut offer);
            assert_eq!(import_service(&offer, &east()).unwrap_err().field, field);
        }
        let mut offer = offered();
        offer.ports.push(ExportedPort { name: "other".into(), ..offer.ports[0].clone() });
        assert_eq!(import_service(&offer, &east()).unwrap_err().field, "ports[1].port");
    }

    fn entry(port: u32, at: &str) -> wire::PacketEntry {
        wire::PacketEntry { port, protocol: "TCP".into(), at: at.into() }
    }

    #[test]
    fn a_service_at_node_ports_needs_no_identities() {
        let mut offer = offered();
        offer.spiffe_ids.clear();
        offer.entries = vec![entry(8080, "192.0.2.1:30080"), entry(8080, "[2001:db8::1]:30080")];
        let (_, service) = import_service(&offer, &east()).unwrap();
        let at: Vec<String> = service.entries_of(8080, Protocol::Tcp).map(|at| at.to_string()).collect();
        assert_eq!(at, ["192.0.2.1:30080", "[2001:db8::1]:30080"]);
        assert_eq!(service.entries_of(8080, Protocol::Udp).count(), 0);
    }

    fn exporting(at: u64, ports: &[(&str, u16)]) -> ImportedService {
        let port = |(name, port): &(&str, u16)| ImportedPort {
            name: (*name).to_owned(),
            port: *port,
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
        };
        ImportedService {
            ports: ports.iter().map(port).collect(),
            spiffe_ids: Vec::new(),
            ready_endpoints: 0,
            exported_at_unix: at,
            visibility: Visibility::Everywhere,
            entries: Vec::new(),
        }
    }

    #[test]
    fn ports_are_united_and_the_older_export_wins_a_conflict() {
        let young = exporting(200, &[("http", 8080), ("admin", 9090)]);
        let old = exporting(100, &[("http", 80), ("admin", 9090), ("grpc", 50051)]);
        let merged = merge_ports([
            Constituent { cluster: "east", service: &young },
            Constituent { cluster: "north", service: &old },
        ]);
        let ports: Vec<_> = merged.ports.iter().map(|p| (p.name.as_str(), p.port)).collect();
        assert_eq!(ports, [("http", 80), ("admin", 9090), ("grpc", 50051)]);
        let conflict = &merged.conflicts[..];
        assert!(matches!(conflict, [c] if c.winner == "north" && c.loser == "east" && c.name == "http"));
    }

    #[test]
    fn the_order_in_which_peers_are_heard_does_not_matter() {
        let one = exporting(100, &[("http", 80)]);
        let two = exporting(100, &[("web", 80), ("x", 81)]);
        let a = Constituent { cluster: "a", service: &one };
        let b = Constituent { cluster: "b", service: &two };
        assert_eq!(merge_ports([a, b]), merge_ports([b, a]));
        assert_eq!(merge_ports([a, b]).ports.len(), 2);
    }
}
