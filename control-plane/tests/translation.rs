//! What the control plane sends, shown to those who must understand it: the real Envoy, and our proxy's reader.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command as Process,
    time::SystemTime,
};

use control_plane::xds::{Client, ProxyKind, ResourceSet, kinds, translate::sets::Translation};
use mesh_model::{
    compile::{MeshModel, compile, diff},
    identity::{SpiffeId, TrustDomain},
    records::{ClusterInfo, ImportedPort, ImportedService, Overflow, PeerRecord, WorkloadBinding},
    resource::{AppProtocol, NamespacedName, Object, Protocol},
};
use mesh_store::{Bytes16, Command, Envelope, State, apply};
use mesh_tls::issue::Root;
use serde_json::{Value, json};
use xds_proto::{
    Message,
    envoy::{
        config::{
            bootstrap::v3::{
                Bootstrap,
                bootstrap::{DynamicResources, StaticResources},
            },
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                Address, ApiConfigSource, ApiVersion, GrpcService, Http2ProtocolOptions, Node, Pipe, address,
                api_config_source::ApiType,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Listener, filter},
            route::v3::{Route, RouteConfiguration, route, route_action::ClusterSpecifier},
        },
        extensions::{
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier,
            },
            transport_sockets::tls::v3::Secret,
        },
    },
    to_any,
};

fn root(domain: &str) -> Vec<u8> {
    let root = Root::generate(TrustDomain::parse(domain).unwrap(), SystemTime::now()).unwrap();
    root.certificate().to_vec()
}

fn workload(name: &str, app: &str, proxy: &str) -> Value {
    json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {"serviceAccount": app, "proxy": proxy, "ports": [{"name": "http", "port": 8080}]},
    })
}

fn service(name: &str, app_protocol: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "main", "port": 80, "targetPort": 8080, "appProtocol": app_protocol}],
        },
    })
}

/// Admits accounts, a gateway, and addresses outside of the mesh, by port and range.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "callers", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "cards"}},
            "ingress": [{
                "from": [
                    {"podSelector": {"matchLabels": {"app": "pay"}}},
                    {"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}},
                    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]}},
                ],
                "ports": [{"port": "http"}, {"port": 8000, "endPort": 9000}],
            }],
        },
    })
}

/// A small shop with everything that is translated: HTTP, gRPC and TCP, with and without proxies, mixed, routed
/// by every kind of match, restricted by a policy, exported, and imported from a peer.
fn shop() -> (State, MeshModel) {
    let mut state = State::default();
    let mut keys = 0u128;
    let mut run = |command: Command| {
        keys += 1;
        let key = Bytes16(keys.to_be_bytes());
        apply(
            &mut state,
            &Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command },
        )
        .outcome
        .unwrap()
    };
    let td = |name: &str| TrustDomain::parse(name).unwrap();
    run(Command::Init(ClusterInfo {
        name: "west".to_owned(),
        trust_domain: td("west.example"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().unwrap(),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().unwrap(),
        roots: vec![root("west.example")],
        trust: Default::default(),
    }));
    run(Command::RegisterNode {
        name: "n1".to_owned(),
        address: "192.0.2.1".parse().unwrap(),
        address6: None,
    });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "cards", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"kind": "Service", "group": "", "name": "cards", "port": 80}],
            "rules": [
                {
                    "matches": [
                        {"path": {"type": "Exact", "value": "/v2"}, "method": "POST"},
                        {"path": {"type": "RegularExpression", "value": "/v[0-9]+/.*"}},
                        {
                            "path": {"type": "PathPrefix", "value": "/beta"},
                            "headers": [{"name": "x-canary", "value": "always"}],
                            "queryParams": [{"name": "user", "type": "RegularExpression", "value": "a.*"}],
                        },
                    ],
                    "filters": [{
                        "type": "RequestHeaderModifier",
                        "requestHeaderModifier": {
                            "set": [{"name": "x-set", "value": "1"}],
                            "add": [{"name": "x-add", "value": "2"}],
                            "remove": ["x-gone"],
                        },
                    }],
                    "timeouts": {"request": "3s", "backendRequest": "1s"},
                    "backendRefs": [{"name": "pay", "port": 80}],
                },
                {"backendRefs": [{"name": "pay", "port": 80, "weight": 90}, {"name": "cards", "port": 80, "weight": 10}]},
            ],
        },
    });
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
        "metadata": {"name": "pay", "namespace": "shop"},
    });
    let gateway = json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"name": "gateway", "namespace": "shop"},
        "spec": {"proxy": "gateway", "address": "192.0.2.1", "ports": [{"port": 15443}]},
    });
    let objects = [
        workload("pay-1", "pay", "sidecar"),
        workload("cards-1", "cards", "sidecar"),
        workload("db-1", "db", "none"),
        workload("mixed-1", "mixed", "sidecar"),
        workload("mixed-2", "mixed", "none"),
        service("pay", "http"),
        service("cards", "grpc"),
        service("db", "tcp"),
        service("mixed", "http"),
        route,
        policy(),
        export,
        gateway,
    ];
    let objects = objects.iter().map(|value| Object::parse(value).unwrap()).collect();
    run(Command::Apply { objects, dry_run: false });
    for (host, name) in [(5, "pay-1"), (6, "cards-1"), (7, "db-1"), (8, "mixed-1"), (9, "mixed-2")] {
        let address = format!("10.1.0.{host}").parse().unwrap();
        let binding = WorkloadBinding { node: "n1".to_owned(), addresses: vec![address], ready: true };
        run(Command::BindWorkload { workload: NamespacedName::new("shop", name), binding });
    }
    run(Command::PutPeer(PeerRecord {
        cluster: "east".to_owned(),
        trust_domain: td("east.example"),
        mesh_domain: "mesh.local".to_owned(),
        roots: vec![root("east.example")],
        trust: Default::default(),
        doors: vec!["192.0.2.65:9443".to_owned()],
        gateways: vec!["192.0.2.65:15443".to_owned()],
        origin_revision: 0,
        imports: Default::default(),
    }));
    let import = |account: &str, app_protocol| ImportedService {
        entries: Vec::new(),
        ports: vec![ImportedPort {
            name: "main".to_owned(),
            port: 80,
            protocol: Protocol::Tcp,
            app_protocol,
        }],
        spiffe_ids: vec![SpiffeId::workload(&td("east.example"), "shop", account)],
        ready_endpoints: 1,
        exported_at_unix: 1,
        visibility: Default::default(),
    };
    run(Command::ImportServices {
        cluster: "east".to_owned(),
        origin_revision: 7,
        upserts: vec![
            (NamespacedName::new("shop", "pay"), import("pay", AppProtocol::Http)),
            (NamespacedName::new("shop", "stock"), import("stock", AppProtocol::Http)),
        ],
        removals: Vec::new(),
    });
    let share = Overflow { percent: 50, failing: 4, callers: 4, since_unix_ms: 1_000_000 };
    run(Command::SetOverflow { shares: vec![(NamespacedName::new("shop", "pay"), 80, share)] });
    let model = compile(&state.input().unwrap());
    (state, model)
}

fn decoded<M: Message + Default>(set: &ResourceSet, type_url: &str) -> Vec<M> {
    let resources = set.of(type_url).into_iter().flat_map(|all| all.values());
    resources.map(|resource| M::decode(resource.any.value.as_slice()).unwrap()).collect()
}

/// What a client gets that nobody has asked for before.
fn view(model: &MeshModel, client: &Client) -> ResourceSet {
    (*Translation::default().view(model, client, None).set).clone()
}

fn agent_of(node: &str) -> Client {
    Client::Agent { node: node.into() }
}

fn sidecar(model: &MeshModel, kind: ProxyKind) -> ResourceSet {
    view(model, &Client::Proxy { workload: "shop/cards-1".into(), kind })
}

fn gateway(model: &MeshModel) -> ResourceSet {
    view(model, &Client::Gateway { workload: "shop/gateway".into() })
}

/// The cluster by which a proxy reaches its agent; nobody is dialled in validation.
fn agent() -> Cluster {
    let address =
        Address { address: Some(address::Address::Pipe(Pipe { path: "/nowhere".into(), mode: 0 })) };
    #[allow(deprecated)]
    Cluster {
        name: "isthmus_agent".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "isthmus_agent".to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                        address: Some(address),
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Puts routes and endpoints where a static configuration has them.
fn in_place(set: &ResourceSet) -> (Vec<Listener>, Vec<Cluster>) {
    let routes: BTreeMap<String, RouteConfiguration> =
        decoded::<RouteConfiguration>(set, kinds::ROUTE).into_iter().map(|r| (r.name.clone(), r)).collect();
    let mut listeners: Vec<Listener> = decoded(set, kinds::LISTENER);
    for listener in &mut listeners {
        for wire in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(filter::ConfigType::TypedConfig(any)) = &mut wire.config_type else {
                panic!("{wire:?}")
            };
            let Ok(mut manager) = HttpConnectionManager::decode(any.value.as_slice()) else { continue };
            if !any.type_url.ends_with("HttpConnectionManager") {
                continue;
            }
            if let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier {
                let routes = routes[&rds.route_config_name].clone();
                manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
                *any = to_any(&manager);
            }
        }
    }
    let assignments: Vec<ClusterLoadAssignment> = decoded(set, kinds::ENDPOINT);
    let mut clusters: Vec<Cluster> = decoded(set, kinds::CLUSTER);
    for cluster in &mut clusters {
        if cluster.eds_cluster_config.take().is_some() {
            let found = assignments.iter().find(|a| a.cluster_name == cluster.name);
            cluster.load_assignment = found.cloned();
            assert!(cluster.load_assignment.is_some(), "{} has no endpoints, not even none", cluster.name);
            cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
        }
    }
    (listeners, clusters)
}

/// The binary that `make test` installs; None if it is to be done without.
fn envoy() -> Option<PathBuf> {
    if std::env::var("SKIP_ENVOY").is_ok_and(|skip| skip == "1") {
        eprintln!("skipped: SKIP_ENVOY=1");
        return None;
    }
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(path.into());
    }
    let lib = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../envoy-venv/lib");
    let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let found = pythons.map(|p| p.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file());
    let told = "no Envoy: run `make test`, which installs it, or set ENVOY_BIN, or SKIP_ENVOY=1";
    Some(found.unwrap_or_else(|| panic!("{told}")))
}

fn validate(name: &str, listeners: Vec<Listener>, clusters: Vec<Cluster>, secrets: Vec<Secret>) {
    let Some(binary) = envoy() else { return };
    let stream = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: "isthmus_agent".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let bootstrap = Bootstrap {
        node: Some(Node { id: "envoy~shop/cards-1".into(), cluster: "west".into(), ..Default::default() }),
        static_resources: Some(StaticResources {
            listeners,
            clusters: clusters.into_iter().chain([agent()]).collect(),
            secrets,
        }),
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::DeltaGrpc as i32,
                transport_api_version: ApiVersion::V3 as i32,
                grpc_services: vec![stream],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(format!("{name}.pb"));
    std::fs::write(&file, bootstrap.encode_to_vec()).unwrap();
    let output = Process::new(binary)
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn envoy_accepts_what_a_sidecar_and_a_gateway_are_sent() {
    let (_, model) = shop();
    for kind in [ProxyKind::Envoy, ProxyKind::Proxy] {
        let set = sidecar(&model, kind);
        let as_sent = (decoded(&set, kinds::LISTENER), decoded(&set, kinds::CLUSTER));
        validate("as-sent", as_sent.0, as_sent.1, decoded(&set, kinds::SECRET));
        let (listeners, clusters) = in_place(&set);
        validate("in-place", listeners, clusters, Vec::new());
    }
    let (listeners, clusters) = in_place(&gateway(&model));
    assert_eq!(listeners.len(), 1);
    validate("gateway", listeners, clusters, Vec::new());
}

#[test]
fn our_proxy_reads_everything_that_it_is_sent() {
    let (_, model) = shop();
    for set in [sidecar(&model, ProxyKind::Proxy), gateway(&model)] {
        for wire in decoded(&set, kinds::LISTENER) {
            proxy::config::listener(wire).unwrap();
        }
        for wire in decoded(&set, kinds::CLUSTER) {
            proxy::config::cluster(wire).unwrap();
        }
        for wire in decoded(&set, kinds::ENDPOINT) {
            proxy::config::assignment(wire).unwrap();
        }
        for wire in decoded(&set, kinds::ROUTE) {
            proxy::config::routes(wire).unwrap();
        }
        for wire in decoded(&set, kinds::SECRET) {
            proxy::config::secret(wire).unwrap();
        }
    }
}

#[test]
fn a_peers_endpoints_come_after_the_local_ones_but_for_their_share_and_under_the_same_name() {
    let (_, model) = shop();
    let set = sidecar(&model, ProxyKind::Proxy);
    let assignments: Vec<ClusterLoadAssignment> = decoded(&set, kinds::ENDPOINT);
    let levels = |name: &str| -> Vec<(u32, String)> {
        let found = assignments.iter().find(|a| a.cluster_name == name).unwrap();
        let region = |l: &LocalityLbEndpoints| l.locality.clone().unwrap().region;
        found.endpoints.iter().map(|l| (l.priority, region(l))).collect()
    };
    assert_eq!(levels("outbound|80|pay.shop"), [(0, "west".to_owned()), (1, "east".to_owned())]);
    // Nothing local: priorities still count from 0.
    assert_eq!(levels("outbound|80|stock.shop"), [(0, "east".to_owned())]);
    let told = assignments.iter().filter_map(|a| Some((a.cluster_name.as_str(), a.policy.as_ref()?)));
    let factors: Vec<_> = told.map(|(name, p)| (name, p.overprovisioning_factor.map(|f| f.value))).collect();
    assert_eq!(factors, [("outbound|80|pay.shop", Some(50))]);
}

#[test]
fn an_endpoint_without_a_proxy_is_never_mixed_into_our_proxys_mtls() {
    let (_, model) = shop();
    let members = |kind| -> usize {
        let assignments: Vec<ClusterLoadAssignment> = decoded(&sidecar(&model, kind), kinds::ENDPOINT);
        let mixed = assignments.into_iter().find(|a| a.cluster_name == "outbound|80|mixed.shop").unwrap();
        mixed.endpoints.iter().map(|l| l.lb_endpoints.len()).sum()
    };
    assert_eq!((members(ProxyKind::Proxy), members(ProxyKind::Envoy)), (1, 2));
}

#[test]
fn weights_and_matches_arrive_in_the_order_of_precedence() {
    let (_, model) = shop();
    let routes: Vec<RouteConfiguration> = decoded(&sidecar(&model, ProxyKind::Proxy), kinds::ROUTE);
    let cards = routes.iter().find(|r| r.name == "outbound|80|cards.shop").unwrap();
    assert_eq!(cards.virtual_hosts.len(), 1);
    let all = &cards.virtual_hosts[0].routes;
    assert_eq!(all.len(), 4);
    let shares = |r: &Route| match &r.action {
        Some(route::Action::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => Some((action.clone(), weighted.clone())),
            _ => None,
        },
        _ => None,
    };
    let at = all.iter().position(|r| shares(r).is_some()).unwrap();
    assert_eq!(at, 2, "after the exact path and the longer prefix");
    let (action, weighted) = shares(&all[at]).unwrap();
    let weights: Vec<u32> = weighted.clusters.iter().map(|c| c.weight.as_ref().unwrap().value).collect();
    assert_eq!(weights, [90, 10]);
    assert_eq!(action.timeout.as_ref().unwrap().seconds, 0, "no timeout of a route is no timeout");
}

#[test]
fn an_agent_gets_its_own_endpoints_and_everybodys_addresses() {
    let (_, model) = shop();
    let translation = Translation::default();
    let set = |node| translation.view(&model, &agent_of(node), None).set;
    let (here, elsewhere) = (set("n1"), set("n2"));
    let count = |set: &ResourceSet, kind: &str| set.of(kind).map_or(0, |all| all.len());
    assert_eq!(count(&here, kinds::LOCAL_ENDPOINT), 6, "five pods and the gateway at the node's own address");
    assert_eq!(count(&elsewhere, kinds::LOCAL_ENDPOINT), 0);
    assert_eq!(count(&here, kinds::WORKLOAD_ADDRESS), count(&elsewhere, kinds::WORKLOAD_ADDRESS));
    assert_eq!(count(&here, kinds::TRUST_BUNDLE), 2);
    assert!(std::ptr::eq(
        here.get(kinds::SERVICE, "shop/pay").unwrap().as_ref(),
        elsewhere.get(kinds::SERVICE, "shop/pay").unwrap().as_ref()
    ));
}

#[test]
fn what_did_not_change_is_not_translated_again_and_comes_out_the_same() {
    let (mut state, before) = shop();
    let first = Translation::default();
    let cards = Client::Proxy { workload: "shop/cards-1".into(), kind: ProxyKind::Envoy };
    let clients = [agent_of("n1"), cards, Client::Gateway { workload: "shop/gateway".into() }];
    let made = clients.each_ref().map(|client| first.view(&before, client, None));
    let key = Bytes16([200; 16]);
    let binding =
        WorkloadBinding { node: "n1".into(), addresses: vec!["10.1.0.7".parse().unwrap()], ready: false };
    let command = Command::BindWorkload { workload: NamespacedName::new("shop", "db-1"), binding };
    apply(&mut state, &Envelope { key, now_unix_ms: 2_000_000, first_unix_ms: None, random: key, command })
        .outcome
        .unwrap();
    let model = compile(&state.input().unwrap());
    let second = first.after(&before, &model, &diff(&before, &model));
    for (client, made) in clients.iter().zip(&made) {
        let incremental = second.view(&model, client, Some(made));
        assert_eq!(incremental.at, model.revision);
        let unchanged = matches!(client, Client::Gateway { .. });
        assert_eq!(std::sync::Arc::ptr_eq(&incremental.set, &made.set), unchanged, "{client}");
        if !unchanged {
            assert_eq!(*incremental.set, view(&model, client));
        }
    }
    let (old, new) = (&made[1].set, second.view(&model, &clients[1], Some(&made[1])).set);
    for same in [kinds::ROUTE, kinds::LISTENER, kinds::CLUSTER] {
        assert!(old.of(same).unwrap().ptr_eq(new.of(same).unwrap()), "{same}");
    }
    let endpoints =
        |set: &ResourceSet| set.get(kinds::ENDPOINT, "outbound|80|db.shop").unwrap().version.clone();
    assert_ne!(endpoints(old), endpoints(&new));
}
