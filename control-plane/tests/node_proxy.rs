//! What a node's proxy is sent, against the oracle: the requests that its filters let through are those that policies admit.
//! The filters are asked of our proxy, which reads them from the wire.

#![allow(clippy::unwrap_used)]

#[path = "common/world.rs"]
mod world;

use std::net::{IpAddr, SocketAddr};

use control_plane::{
    views::ModelViews,
    xds::{Client, Views, kinds},
};
use mesh_model::{
    identity::TrustDomain,
    policy::{Flow, FlowPeer, NODE_PROXY, verdict},
    resource::{HttpRequest, NamespacedName, Protocol},
};
use mesh_store::Command;
use proxy::{
    config::{FilterChain, FilterKind, Listener, NetworkFilter},
    inbound::{Ends, FirstBytes, choose},
    policy::{Connection, Facts, Rbac, decide},
    route::RequestView,
};
use serde_json::{Value, json};
use world::{World, west};
use xds_proto::{
    Message,
    envoy::config::{cluster::v3::Cluster, listener::v3::Listener as WireListener},
};

const PODS: [(&str, &str, u8); 4] = [("web", "n1", 2), ("batch", "n1", 3), ("pay", "n2", 4), ("db", "n2", 5)];

fn address(pod: &str) -> IpAddr {
    let (_, node, last) = PODS.iter().find(|(name, ..)| *name == pod).unwrap();
    IpAddr::from([10, 1, u8::from(*node == "n2"), *last])
}

fn mesh(policies: &[Value]) -> World {
    let mut world = World::of(west());
    for (name, last) in [("n1", 1), ("n2", 2)] {
        let address = IpAddr::from([192, 0, 2, last]);
        world.run(Command::RegisterNode { name: name.to_owned(), address, address6: None });
    }
    for (name, node, _) in PODS {
        world.put(json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
            "spec": {"serviceAccount": name, "ports": [{"name": "http", "port": 8080}]},
        }));
        world.bind(NamespacedName::new("shop", name), node, address(name));
    }
    world.put(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "pay", "namespace": "shop", "annotations": {"isthmus.io/redirect": NODE_PROXY}},
        "spec": {"selector": {"app": "pay"}, "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}]},
    }));
    for (number, egress) in policies.iter().enumerate() {
        world.put(json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"namespace": "shop", "name": format!("p{number}")},
            "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "egress": egress},
        }));
    }
    world
}

fn to(peers: Value, port: &str, http: Value) -> Value {
    let mut entry = peers;
    entry["toPorts"] = json!([{"ports": [{"port": port, "protocol": "TCP"}], "rules": {"http": http}}]);
    entry
}

/// What the proxy of a node has to serve with. None: nothing.
fn listener(world: &World, node: &str) -> Option<Listener> {
    let domain = TrustDomain::parse("west.example").unwrap();
    let views = ModelViews::new(domain, Vec::new(), &world.state);
    let client = Client::NodeProxy { node: node.to_owned(), proxy: NODE_PROXY.to_owned() };
    let set = views.resources(&client);
    for resource in set.of(kinds::CLUSTER).into_iter().flat_map(|all| all.values()) {
        proxy::config::cluster(Cluster::decode(resource.any.value.as_slice()).unwrap()).unwrap();
    }
    let resource = set.get(kinds::LISTENER, "node-proxy")?;
    Some(proxy::config::listener(WireListener::decode(resource.any.value.as_slice()).unwrap()).unwrap())
}

fn chain(listener: &Listener, from: IpAddr, to: SocketAddr) -> Option<&FilterChain> {
    let remote = SocketAddr::new(from, 40_000);
    let ends = Ends { local: to, remote, direct: remote };
    let at = choose(listener.chains.iter().map(|chain| &chain.matches), ends, &FirstBytes::Unseen);
    at.map(|at| &listener.chains[at]).or(listener.default_chain.as_ref())
}

fn rules(chain: &FilterChain) -> Vec<Rbac> {
    let NetworkFilter::Http(manager) = &chain.filter else { panic!("bytes: {chain:?}") };
    let rbac = |filter: &proxy::config::HttpFilter| match &filter.kind {
        FilterKind::Rbac(rbac) => Some(rbac.clone()),
        #[allow(unreachable_patterns, reason = "there may be others")]
        _ => None,
    };
    manager.filters.iter().filter_map(rbac).collect()
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    method: &'static str,
    path: &'static str,
    host: &'static str,
    header: Option<(&'static str, &'static str)>,
}

fn lets_through(listener: &Listener, from: IpAddr, to: SocketAddr, asked: Asked) -> bool {
    let Some(chain) = chain(listener, from, to) else { return false };
    let remote = SocketAddr::new(from, 40_000);
    let behalf = Default::default();
    let connection = Connection { local: to, remote, direct: remote, peer: None, server_name: None, behalf };
    let headers = asked.header.into_iter().map(|(name, value)| {
        (name.parse::<http::HeaderName>().unwrap(), http::HeaderValue::from_static(value))
    });
    let headers = headers.collect();
    let request = RequestView {
        method: asked.method,
        scheme: "http",
        authority: asked.host,
        path_and_query: asked.path,
        headers: &headers,
    };
    decide(&rules(chain), Facts { request: Some(&request), ..Facts::of(&connection) }).denied.is_none()
}

#[test]
fn requests_are_let_through_as_the_oracle_admits_them() {
    let pay = || json!({"toEndpoints": [{"matchLabels": {"app": "pay"}}]});
    let world = mesh(&[
        json!([
            to(pay(), "8080", json!([{"method": "GET", "path": "/v1/.*"}, {"host": "pay\\.shop", "method": "PUT"}])),
            to(json!({"toCIDR": ["203.0.113.0/24"]}), "80", json!([{"headers": ["X-Team: web"]}])),
            to(json!({"toEntities": ["remote-node"]}), "9100", json!([{}])),
            {"toEndpoints": [{"matchLabels": {"app": "db"}}], "toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}]},
        ]),
        json!([to(json!({"toEntities": ["all"]}), "8081", json!([{"path": "/all"}]))]),
    ]);
    let listener = listener(&world, "n1").unwrap();
    let asked: Vec<Asked> = [
        ("GET", "/v1/cards", None),
        ("GET", "/v1/../admin", None),
        ("GET", "/v1/%2e%2e/admin", None),
        ("GET", "/v2", None),
        ("POST", "/v1/cards", None),
        ("PUT", "/", None),
        ("GET", "/all", Some(("x-team", "web"))),
        ("GET", "/all?x", Some(("x-team", "other"))),
    ]
    .into_iter()
    .flat_map(|(method, path, header)| ["pay.shop", "other"].map(|host| Asked { method, path, host, header }))
    .collect();
    let state = &world.state;
    let oracle = mesh_model::policy::World {
        objects: &state.objects,
        bindings: &state.bindings,
        nodes: &state.nodes,
        cluster: state.cluster.as_deref().unwrap(),
    };
    let (mut through, mut read) = (0, 0);
    for source in ["web", "batch"] {
        for ip in [address("pay"), address("db"), [203, 0, 113, 9].into(), [192, 0, 2, 2].into()] {
            for port in [80, 8080, 8081, 9100] {
                let flow = Flow {
                    source: FlowPeer::Workload(NamespacedName::new("shop", source)),
                    destination: FlowPeer::Address(ip),
                    protocol: Protocol::Tcp.into(),
                    port,
                };
                let said = verdict(oracle, &flow).egress;
                // The kernel leads nothing else there.
                if !said.redirect {
                    continue;
                }
                for asked in &asked {
                    let header: Vec<(&str, &str)> = asked.header.into_iter().collect();
                    let Asked { method, path, host, .. } = *asked;
                    let expected = said.admits(&HttpRequest { method, path, host, headers: &header });
                    let found = lets_through(&listener, address(source), SocketAddr::new(ip, port), *asked);
                    assert_eq!(found, expected, "{source} to {ip}:{port}: {asked:?}");
                    read += 1;
                    through += usize::from(found);
                }
            }
        }
    }
    assert!(through > 10 && through < read, "{through} of {read}");
    // Whoever is none of the node's pods is let through by nothing.
    let all = Asked { method: "GET", path: "/v1/cards", host: "pay.shop", header: None };
    assert!(lets_through(&listener, address("web"), SocketAddr::new(address("pay"), 8080), all));
    for stranger in [address("batch"), address("pay"), [10, 1, 0, 77].into(), [127, 0, 0, 1].into()] {
        assert!(!lets_through(&listener, stranger, SocketAddr::new(address("pay"), 8080), all), "{stranger}");
    }
}

#[test]
fn a_service_that_is_led_to_the_proxy_is_judged_for_those_whom_rules_are_about() {
    let world = mesh(&[json!([to(
        json!({"toEndpoints": [{"matchLabels": {"app": "pay"}}]}),
        "8080",
        json!([{"method": "GET"}])
    )])]);
    let service = world.state.allocations.values().next().unwrap().virtual_ip.unwrap();
    let listener = listener(&world, "n1").unwrap();
    let at = SocketAddr::new(service, 80);
    let asks = |method| Asked { method, path: "/", host: "pay.shop", header: None };
    assert!(lets_through(&listener, address("web"), at, asks("GET")));
    assert!(!lets_through(&listener, address("web"), at, asks("POST")));
    assert!(lets_through(&listener, address("batch"), at, asks("POST")), "no rule is about it");
    // On another node there is nobody of whom to know.
    let other = self::listener(&world, "n2").unwrap();
    assert!(other.default_chain.is_none());
    assert!(lets_through(&other, address("db"), at, asks("POST")));
    // A rule that looks at nothing leaves nothing to look at.
    let unread = mesh(&[json!([
        to(json!({"toEndpoints": [{"matchLabels": {"app": "pay"}}]}), "8080", json!([{"method": "GET"}])),
        {"toEndpoints": [{"matchLabels": {"app": "pay"}}]},
    ])]);
    let listener = self::listener(&unread, "n1").unwrap();
    assert!(lets_through(&listener, address("web"), at, asks("POST")));
}
