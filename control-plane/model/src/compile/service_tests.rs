//! Services, routes and views of a small shop.

use std::sync::Arc;

use serde_json::json;

use super::{
    diff,
    world::{TestCluster, named},
};
use crate::{
    records::{ImportedService, PacketEntry},
    resource::{AppProtocol, Kind, PathMatch, Protocol},
    view,
};

/// `web` calls `pay`, which has a sidecar; `pay` is exported; the gateway stands on n1's host.
fn shop() -> TestCluster {
    let mut cluster = TestCluster::west();
    let http = json!([{"name": "http", "port": 8080}]);
    cluster
        .workload("shop/web", "web", "sidecar", json!([]))
        .bind("shop/web", "n1", "10.1.1.2")
        .workload("shop/pay-1", "pay", "sidecar", http.clone())
        .bind("shop/pay-1", "n1", "10.1.1.3")
        .workload("shop/pay-2", "pay", "sidecar", http)
        .service("shop/pay", "pay", 80, json!("http"))
        .export("shop/pay")
        .apply(json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": "mesh", "name": "gateway"},
            "spec": {"proxy": "gateway", "address": "192.0.2.1"},
        }));
    cluster
}

#[test]
fn a_service_has_the_bound_workloads_that_its_selector_finds() {
    let mut cluster = shop();
    let model = cluster.compile();
    let port = &model.services[&named("shop/pay")].ports[0];
    assert_eq!(port.sni, "80.pay.shop.svc.mesh.local");
    assert_eq!(port.endpoints.len(), 1, "pay-2 runs nowhere yet");
    assert_eq!(port.endpoints[0].address.to_string(), "10.1.1.3:8080");
    assert!(port.endpoints[0].mtls && port.endpoints[0].ready);
    assert_eq!(port.spiffe_ids.len(), 1);

    cluster.bind("shop/pay-2", "n2", "10.1.2.9");
    Arc::make_mut(cluster.bindings.get_mut(&named("shop/pay-2")).unwrap()).ready = false;
    let after = cluster.compile();
    let port = &after.services[&named("shop/pay")].ports[0];
    assert_eq!(port.endpoints.len(), 2);
    assert_eq!(port.packet_backends().count(), 1, "what is not ready gets no traffic");
    let changed = diff(&model, &after);
    assert_eq!(changed.services.changed, [named("shop/pay")]);
    assert_eq!(changed.workloads.changed, [named("shop/pay-2")]);
    assert!(diff(&after, &cluster.compile()).is_empty());
}

#[test]
fn endpoint_slices_add_addresses_and_recognise_workloads() {
    let mut cluster = shop();
    cluster
        .apply(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "db"},
            "spec": {"ports": [{"name": "sql", "port": 5432, "appProtocol": "tcp"}]},
        }))
        .apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 8080}, {"name": "other", "port": 1}],
            "endpoints": [{"addresses": ["203.0.113.5"]}, {"addresses": ["10.1.1.3"], "conditions": {"ready": false}}],
        }));
    let model = cluster.compile();
    let endpoints = &model.services[&named("shop/db")].ports[0].endpoints;
    assert_eq!(endpoints.len(), 2);
    assert_eq!(endpoints[0].workload, Some(named("shop/pay-1")));
    assert!(endpoints[0].mtls && !endpoints[0].ready);
    assert!(endpoints[1].workload.is_none() && !endpoints[1].mtls && endpoints[1].ready);
}

#[test]
fn an_exported_service_gains_its_peers_endpoints_and_identities_behind_its_own() {
    let mut cluster = shop();
    cluster.import("east", "shop/pay", 80, 5);
    let model = cluster.compile();
    let port = &model.services[&named("shop/pay")].ports[0];
    let places: Vec<(u32, &str, bool)> =
        port.endpoints.iter().map(|e| (e.priority, e.cluster.as_str(), e.mtls)).collect();
    assert_eq!(places, [(0, "west", true), (1, "east", true)], "a gateway known by name only is left out");
    assert_eq!(port.spiffe_ids.len(), 2);
    assert_eq!(port.packet_backends().count(), 1, "packets can't go to a gateway");
    assert_eq!(port.endpoints.iter().map(|e| e.place.elsewhere).collect::<Vec<_>>(), [false, true]);
    assert!(!model.services[&named("shop/pay")].delivery.imported, "it is this cluster's as well");
}

#[test]
fn what_a_peer_takes_in_at_node_ports_is_reached_by_packets_behind_what_is_here() {
    let mut cluster = shop();
    cluster.import("east", "shop/pay", 80, 5);
    let east = Arc::make_mut(cluster.peers.get_mut("east").unwrap());
    let offer = Arc::make_mut(east.imports.get_mut(&named("shop/pay")).unwrap());
    offer.entries = ["192.0.2.7:30080", "[2001:db8::7]:30080"]
        .map(|at| PacketEntry { port: 80, protocol: Protocol::Tcp, at: at.parse().unwrap() })
        .into();
    let model = cluster.compile();
    let port = &model.services[&named("shop/pay")].ports[0];
    let places: Vec<(u32, String, bool)> =
        port.reachable().map(|e| (e.priority, e.address.to_string(), e.mtls)).collect();
    assert_eq!(places.len(), 3);
    assert!(places[1..].iter().all(|(priority, _, mtls)| (*priority, *mtls) == (1, false)), "{places:?}");
    assert_eq!(port.endpoints.len(), 2, "proxies speak to those of the first family, and to no gateway");
    assert_eq!(port.packet_backends().count(), 1, "as long as somebody is here");

    // Of a protocol that no gateway forwards, too.
    let offer = Arc::make_mut(cluster.peers.get_mut("east").unwrap());
    let mut dns = ImportedService::clone(&offer.imports[&named("shop/pay")]);
    dns.spiffe_ids.clear();
    dns.ports[0].protocol = Protocol::Udp;
    dns.entries.iter_mut().for_each(|entry| entry.protocol = Protocol::Udp);
    offer.imports.insert(named("shop/dns"), Arc::new(dns));
    cluster.allocate(&named("shop/dns"), &[]);
    let port = &cluster.compile().services[&named("shop/dns")].ports[0];
    let backends: Vec<String> = port.packet_backends().map(|e| e.address.to_string()).collect();
    assert_eq!(
        (port.protocol, &backends[..]),
        (Protocol::Udp, &["192.0.2.7:30080".to_owned(), "[2001:db8::7]:30080".to_owned()][..])
    );
}

#[test]
fn a_service_that_is_not_exported_is_not_another_clusters_service_of_the_same_name() {
    let mut cluster = TestCluster::west();
    cluster.service("shop/pay", "pay", 80, json!(80)).import("east", "shop/pay", 80, 5);
    assert!(cluster.compile().services[&named("shop/pay")].ports[0].endpoints.is_empty());
}

#[test]
fn a_service_that_only_peers_have_can_be_called_here() {
    let mut cluster = shop();
    cluster.import("east", "shop/ship", 8000, 9).import("north", "shop/ship", 8001, 3);
    cluster.allocate(&named("shop/ship"), &[8000, 8001]);
    let model = cluster.compile();
    let ship = &model.services[&named("shop/ship")];
    assert!(ship.virtual_ip.is_some() && !ship.exported);
    let ports: Vec<u16> = ship.ports.iter().map(|p| p.port).collect();
    assert_eq!(ports, [8001], "both call the port http; north exported it earlier");
    assert_eq!(ship.ports[0].endpoints[0].cluster, "north");
    let web = view::for_sidecar(&model, &named("shop/web")).unwrap();
    assert!(web.outbound.iter().any(|l| l.name == "outbound|8001|ship.shop"));
}

#[test]
fn a_peer_can_vouch_only_for_its_own_trust_domain() {
    let mut cluster = shop();
    cluster.import("east", "shop/ship", 80, 1);
    let east = Arc::make_mut(cluster.peers.get_mut("east").unwrap());
    let ours = "spiffe://west.example/ns/shop/sa/web".parse().unwrap();
    Arc::make_mut(east.imports.get_mut(&named("shop/ship")).unwrap()).spiffe_ids.push(ours);
    let ids = &cluster.compile().services[&named("shop/ship")].ports[0].spiffe_ids;
    assert_eq!(
        ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["spiffe://east.example/ns/shop/sa/ship"]
    );
}

#[test]
fn routes_are_tried_in_the_gateway_apis_order() {
    let mut cluster = shop();
    let backend = json!([{"name": "pay", "port": 80}]);
    let parents = json!([{"group": "", "kind": "Service", "name": "pay"}]);
    let route = |name: &str, matches: serde_json::Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"parentRefs": parents, "rules": [{"matches": matches, "backendRefs": backend}]},
        })
    };
    cluster
        .apply(route("a", json!([{"path": {"value": "/"}}, {"path": {"type": "Exact", "value": "/v1"}}])))
        .apply(route(
            "b",
            json!([{"path": {"value": "/v1"}}, {"path": {"type": "RegularExpression", "value": "/x.*"}}]),
        ))
        .apply(route("c", json!([{"headers": [{"name": "Canary", "value": "yes"}]}])))
        .apply(route("older", json!([{"path": {"value": "/"}}])));
    for (name, created) in [("shop/a", 2), ("shop/b", 2), ("shop/c", 2), ("shop/older", 1)] {
        cluster.created(Kind::HttpRoute, name, created);
    }
    let model = cluster.compile();
    let routes = &model.services[&named("shop/pay")].ports[0].routes;
    let order: Vec<(String, &str)> = routes
        .iter()
        .map(|r| {
            let path = match &r.rule.matches[0].path {
                PathMatch::Exact(p) => format!("={p}"),
                PathMatch::Prefix(p) => p.clone(),
                PathMatch::Regex(p) => format!("~{p}"),
            };
            (path, r.provenance.as_str())
        })
        .collect();
    assert_eq!(
        order,
        [
            ("=/v1".to_owned(), "httproute/shop/a#rules[0]"),
            ("/v1".to_owned(), "httproute/shop/b#rules[0]"),
            ("/".to_owned(), "httproute/shop/c#rules[0]"),
            ("/".to_owned(), "httproute/shop/older#rules[0]"),
            ("/".to_owned(), "httproute/shop/a#rules[0]"),
            ("~/x.*".to_owned(), "httproute/shop/b#rules[0]"),
        ]
    );
}

#[test]
fn an_agent_sees_all_addresses_but_only_its_own_endpoints_and_policy() {
    let mut cluster = shop();
    cluster.bind("shop/pay-2", "n2", "10.1.2.9").apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
    }));
    let model = cluster.compile();
    let names = |list: &[&super::MeshWorkload]| list.iter().map(|w| w.name.to_string()).collect::<Vec<_>>();
    let n1 = view::for_agent(&model, "n1");
    assert_eq!(names(&n1.workloads), ["mesh/gateway", "shop/pay-1", "shop/pay-2", "shop/web"]);
    assert_eq!(names(&n1.local), ["mesh/gateway", "shop/pay-1", "shop/web"]);
    assert_eq!(n1.policy_classes.len(), 2);
    let n2 = view::for_agent(&model, "n2");
    assert_eq!(names(&n2.local), ["shop/pay-2"]);
    assert_eq!(n2.policy_classes.iter().map(|c| c.id).collect::<Vec<_>>(), [0]);
    assert!(view::for_agent(&model, "").local.is_empty());
}

#[test]
fn a_sidecar_serves_its_own_ports_and_calls_every_service() {
    let model = shop().compile();
    let pay = view::for_sidecar(&model, &named("shop/pay-1")).unwrap();
    assert_eq!(pay.inbound.len(), 1);
    assert_eq!(pay.inbound[0].name, "inbound|8080");
    assert_eq!(pay.inbound[0].addresses[0].to_string(), "10.1.1.3:8080");
    assert_eq!(
        pay.inbound[0].server_names,
        ["80.pay.shop.svc.mesh.local", "pay.shop", "pay.shop.svc.mesh.local"]
    );
    let web = view::for_sidecar(&model, &named("shop/web")).unwrap();
    assert!(web.inbound.is_empty());
    assert_eq!(web.outbound[0].name, "outbound|80|pay.shop");
    assert_eq!(web.clusters[0].spiffe_ids[0].to_string(), "spiffe://west.example/ns/shop/sa/pay");
    assert!(view::for_sidecar(&model, &named("mesh/gateway")).is_none());
}

#[test]
fn a_grpc_client_has_every_service_by_two_names_and_endpoints_of_this_cluster_only() {
    let model = shop().compile();
    let web = view::for_grpc(&model, &named("shop/web")).unwrap();
    let pay = web.targets.iter().find(|t| t.name == "outbound|80|pay.shop").unwrap();
    assert_eq!(pay.listeners, ["pay.shop:80", "pay.shop.svc.mesh.local:80"]);
    assert!(web.clusters.iter().flat_map(|c| &c.endpoints).all(|e| e.priority == 0));
    assert!(view::for_grpc(&model, &named("mesh/gateway")).is_none());
}

#[test]
fn what_a_program_speaks_is_said_by_itself_first_then_by_its_services() {
    let mut cluster = shop();
    let protocol = |cluster: &TestCluster| {
        let model = cluster.compile();
        view::for_sidecar(&model, &named("shop/pay-1")).unwrap().inbound[0].protocol
    };
    assert_eq!(protocol(&cluster), AppProtocol::Http);
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "raw"},
        "spec": {"selector": {"app": "pay"}, "ports": [{"port": 81, "targetPort": 8080, "appProtocol": "tcp"}]},
    }));
    assert_eq!(protocol(&cluster), AppProtocol::Tcp, "the services disagree");
    let ports = json!([{"name": "http", "port": 8080, "appProtocol": "grpc"}]);
    cluster.workload("shop/pay-1", "pay", "sidecar", ports);
    assert_eq!(protocol(&cluster), AppProtocol::Grpc);
}

#[test]
fn a_gateway_forwards_to_local_sidecars_of_exported_services_only() {
    let mut cluster = shop();
    cluster.service("shop/web", "web", 80, json!(80)).import("east", "shop/pay", 80, 1);
    let model = cluster.compile();
    let gateway = view::for_gateway(&model, &named("mesh/gateway")).unwrap();
    assert_eq!((gateway.listener.as_str(), gateway.port), ("gateway|15443", 15443));
    assert_eq!(gateway.passthroughs.len(), 1);
    assert_eq!(gateway.passthroughs[0].cluster, "gateway|80|pay.shop");
    assert!(gateway.passthroughs[0].endpoints.iter().all(|e| e.cluster == "west"));
    assert!(view::for_gateway(&model, &named("shop/web")).is_none());
}

#[test]
fn a_peer_sees_what_is_exported_and_where_to_knock() {
    let mut cluster = shop();
    cluster.service("shop/web", "web", 80, json!(80)).import("east", "shop/ship", 80, 1);
    let model = cluster.compile();
    let east = view::for_peer(&model, "east").unwrap();
    assert_eq!(east.exported.iter().map(|s| s.name.to_string()).collect::<Vec<_>>(), ["shop/pay"]);
    assert_eq!(east.gateways[0].to_string(), "192.0.2.1:15443");
    assert!(view::for_peer(&model, "stranger").is_none());
    assert_eq!(view::trust_bundles(&model).len(), 2);
}

#[test]
fn headless_services_have_no_virtual_ip_and_datagram_ports_no_listener() {
    let mut cluster = shop();
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "dns"},
        "spec": {"clusterIP": "None", "selector": {"app": "pay"}, "ports": [{"port": 53, "protocol": "UDP"}]},
    }));
    let model = cluster.compile();
    let dns = &model.services[&named("shop/dns")];
    assert!(dns.virtual_ip.is_none());
    assert_eq!((dns.ports[0].protocol, dns.ports[0].proxy_port), (Protocol::Udp, 0));
    assert!(!dns.ports[0].endpoints[0].mtls);
}

#[test]
fn a_headless_service_without_ports_names_its_endpoints_all_the_same() {
    let mut cluster = shop();
    cluster
        .apply(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "peers"},
            "spec": {"clusterIP": "None", "selector": {"app": "pay"}},
        }))
        .apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "peers-1", "labels": {"kubernetes.io/service-name": "peers"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["203.0.113.5"], "hostname": "far", "conditions": {"ready": false}}],
        }));
    let model = cluster.compile();
    let peers = &model.services[&named("shop/peers")];
    let named_endpoints: Vec<_> = peers
        .delivery
        .named
        .iter()
        .map(|e| (e.address.to_string(), e.place.hostname.clone().unwrap(), e.ready))
        .collect();
    assert!(peers.ports.is_empty());
    assert_eq!(
        named_endpoints,
        [
            ("10.1.1.3:0".to_owned(), "pay-1".to_owned(), true),
            ("203.0.113.5:0".to_owned(), "far".to_owned(), false)
        ]
    );
    // One with ports says it there.
    assert!(model.services[&named("shop/pay")].delivery.named.is_empty());
}

fn slice(
    name: &str,
    of: &str,
    annotations: serde_json::Value,
    endpoints: serde_json::Value,
) -> serde_json::Value {
    let v6 = endpoints[0]["addresses"][0].as_str().is_some_and(|ip| ip.contains(':'));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": name, "annotations": annotations,
            "labels": {"kubernetes.io/service-name": of}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

fn bare(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"ports": [{"port": 80}]},
    })
}

#[test]
fn endpoints_of_a_later_priority_are_for_when_the_earlier_have_none_that_is_ready() {
    let mut cluster = shop();
    cluster
        .apply(bare("db"))
        .apply(slice("db-1", "db", json!({}), json!([{"addresses": ["203.0.113.1"]}])))
        .apply(slice(
            "db-2",
            "db",
            json!({"isthmus.io/priority": "2"}),
            json!([{"addresses": ["203.0.113.2"]}]),
        ))
        .export("shop/db")
        .import("east", "shop/db", 80, 1);
    let backends = |cluster: &TestCluster| {
        let model = cluster.compile();
        let port = &model.services[&named("shop/db")].ports[0];
        let gateways = port.endpoints.iter().filter(|e| e.place.by_gateway).map(|e| e.priority);
        assert_eq!(gateways.collect::<Vec<_>>(), [3], "peers come after all that is here");
        port.packet_backends().map(|e| e.address.ip().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(backends(&cluster), ["203.0.113.1"]);
    let away = json!([{"addresses": ["203.0.113.1"], "conditions": {"ready": false}}]);
    cluster.apply(slice("db-1", "db", json!({}), away));
    assert_eq!(backends(&cluster), ["203.0.113.2"]);
}

#[test]
fn an_endpoint_that_ends_is_told_until_it_serves_no_more() {
    let mut cluster = shop();
    let conditions = |serving: bool| json!({"ready": false, "serving": serving, "terminating": true});
    cluster.apply(bare("db")).apply(slice(
        "db-1",
        "db",
        json!({}),
        json!([
            {"addresses": ["203.0.113.1"], "conditions": conditions(true), "zone": "a", "nodeName": "n7",
             "hints": {"forZones": [{"name": "b"}], "forNodes": [{"name": "n7"}, {"name": "n8"}]}},
            {"addresses": ["203.0.113.2"], "conditions": conditions(false)},
        ]),
    ));
    let model = cluster.compile();
    let endpoints = &model.services[&named("shop/db")].ports[0].endpoints;
    let place = &endpoints[0].place;
    assert!(place.draining && !endpoints[0].ready && !endpoints[1].place.draining);
    assert_eq!((place.zone.as_deref(), place.node.as_deref()), (Some("a"), Some("n7")));
    assert_eq!(place.hint_zones, ["b"]);
    assert_eq!(place.hint_nodes, ["n7", "n8"]);
}

#[test]
fn what_a_slice_says_of_a_workload_goes_before_what_its_node_says() {
    let mut cluster = shop();
    cluster.bind("shop/pay-2", "n2", "10.1.2.9");
    Arc::make_mut(cluster.nodes.get_mut("n1").unwrap()).facts.zone = "a".to_owned();
    let listed = json!([
        {"addresses": ["10.1.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.1.2.9"], "zone": "c", "nodeName": "n9", "hints": {"forZones": [{"name": "b"}]}},
    ]);
    cluster.apply(slice("pay-1", "pay", json!({"isthmus.io/priority": "1"}), listed));
    let model = cluster.compile();
    let port = &model.services[&named("shop/pay")].ports[0];
    let [first, second] = &port.endpoints[..] else { panic!("{:?}", port.endpoints) };
    assert!(!first.ready && first.place.draining && first.mtls, "it ends, and is who it was");
    assert_eq!((first.workload.as_ref(), first.priority), (Some(&named("shop/pay-1")), 1));
    assert_eq!((first.place.zone.as_deref(), first.place.node.as_deref()), (Some("a"), Some("n1")));
    assert!(second.ready && !second.place.draining);
    assert_eq!((second.place.zone.as_deref(), second.place.node.as_deref()), (Some("c"), Some("n9")));
    assert_eq!(second.place.hint_zones, ["b"]);
    let backends: Vec<String> = port.packet_backends().map(|e| e.address.to_string()).collect();
    assert_eq!(backends, ["10.1.2.9:8080"]);

    // Ready there though its node does not say so, and the other way round.
    Arc::make_mut(cluster.bindings.get_mut(&named("shop/pay-2")).unwrap()).ready = false;
    let ready = |cluster: &TestCluster| -> Vec<bool> {
        cluster.compile().services[&named("shop/pay")].ports[0].endpoints.iter().map(|e| e.ready).collect()
    };
    assert_eq!(ready(&cluster), [false, true]);
    let listed =
        json!([{"addresses": ["10.1.1.3"]}, {"addresses": ["10.1.2.9"], "conditions": {"ready": false}}]);
    cluster.apply(slice("pay-1", "pay", json!({}), listed));
    assert_eq!(ready(&cluster), [true, false]);
    // What no slice lists is as its node says.
    cluster.apply(slice("pay-1", "pay", json!({}), json!([{"addresses": ["203.0.113.1"]}])));
    assert_eq!(ready(&cluster), [true, false, true]);
}

#[test]
fn a_workload_that_ends_drains_with_or_without_a_slice() {
    let mut cluster = shop();
    cluster.bind("shop/pay-2", "n2", "10.1.2.9").apply(json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"namespace": "shop", "name": "pay-1", "labels": {"app": "pay"},
            "annotations": {"isthmus.io/drain": "true"}},
        "spec": {"serviceAccount": "pay", "proxy": "sidecar", "ports": [{"name": "http", "port": 8080}]},
    }));
    let states = |cluster: &TestCluster| -> Vec<(bool, bool)> {
        let model = cluster.compile();
        let port = &model.services[&named("shop/pay")].ports[0];
        port.endpoints.iter().map(|e| (e.ready, e.place.draining)).collect()
    };
    assert_eq!(states(&cluster), [(false, true), (true, false)]);
    let listed = json!([{"addresses": ["10.1.1.3"]}]);
    cluster.apply(slice("pay-1", "pay", json!({}), listed));
    assert_eq!(states(&cluster), [(false, true), (true, false)]);
    Arc::make_mut(cluster.bindings.get_mut(&named("shop/pay-1")).unwrap()).ready = false;
    cluster.apply(slice("pay-1", "pay", json!({}), json!([{"addresses": ["203.0.113.1"]}])));
    assert_eq!(states(&cluster)[0], (false, false), "what serves nobody does not drain");
}

#[test]
fn an_endpoint_is_in_the_zone_of_its_node() {
    let mut cluster = shop();
    Arc::make_mut(cluster.nodes.get_mut("n1").unwrap()).facts.zone = "a".to_owned();
    let model = cluster.compile();
    let endpoint = &model.services[&named("shop/pay")].ports[0].endpoints[0];
    assert_eq!((endpoint.place.node.as_deref(), endpoint.place.zone.as_deref()), (Some("n1"), Some("a")));
    assert_eq!(endpoint.place.hostname, None);
}

#[test]
fn a_service_of_two_families_has_the_second_for_packets_alone() {
    let mut cluster = shop();
    Arc::make_mut(cluster.bindings.get_mut(&named("shop/pay-1")).unwrap())
        .addresses
        .push("fd00:1::103".parse().unwrap());
    let before = cluster.compile();
    assert_eq!(before.services[&named("shop/pay")].ports[0].reachable().count(), 1);
    let allocation = Arc::make_mut(cluster.allocations.get_mut(&named("shop/pay")).unwrap());
    allocation.second_ip = Some("fd00:2::1".parse().unwrap());
    let model = cluster.compile();
    let service = &model.services[&named("shop/pay")];
    let port = &service.ports[0];
    assert_eq!(
        port.endpoints,
        before.services[&named("shop/pay")].ports[0].endpoints,
        "proxies see no change"
    );
    let second: Vec<String> = port.second_family.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(second, ["[fd00:1::103]:8080"]);
    assert_eq!(port.packet_backends().count(), 2);
}

#[test]
fn a_service_may_name_what_is_not_ready() {
    let mut cluster = shop();
    Arc::make_mut(cluster.bindings.get_mut(&named("shop/pay-1")).unwrap()).ready = false;
    let mut service = bare("early");
    service["spec"]["selector"] = json!({"app": "pay"});
    service["spec"]["clusterIP"] = json!("None");
    cluster.apply(service.clone());
    let of = |cluster: &TestCluster| {
        cluster.compile().services[&named("shop/early")].ports[0].endpoints[0].clone()
    };
    assert!(!of(&cluster).ready);
    assert_eq!(of(&cluster).place.hostname.as_deref(), Some("pay-1"));
    service["spec"]["publishNotReadyAddresses"] = json!(true);
    cluster.apply(service);
    assert!(of(&cluster).ready);
}
