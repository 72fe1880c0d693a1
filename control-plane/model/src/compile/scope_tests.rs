//! Who is told of which service: `exportTo` and Sidecar objects.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::world::{TestCluster, named};
use crate::{
    resource::{EXPORT_TO_ANNOTATION, Kind, Visibility},
    view,
};

/// A caller in each of two namespaces, and a service in each of three.
fn mesh() -> TestCluster {
    let mut cluster = TestCluster::west();
    for namespace in ["bank", "shop"] {
        cluster.workload(&format!("{namespace}/web"), "web", "sidecar", json!([]));
    }
    for service in ["bank/pay", "ops/log", "shop/cart"] {
        cluster.service(service, "x", 80, json!(80));
    }
    cluster
}

fn service(cluster: &mut TestCluster, name: &str, export_to: &str) {
    let parts = named(name);
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": parts.namespace, "name": parts.name,
            "annotations": {EXPORT_TO_ANNOTATION: export_to}},
        "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]},
    }));
}

fn sidecar(cluster: &mut TestCluster, name: &str, selects: Value, hosts: &[&str]) {
    let parts = named(name);
    let mut spec = json!({"egress": [{"hosts": hosts}]});
    if !selects.is_null() {
        spec["workloadSelector"] = json!({"labels": selects});
    }
    cluster.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"namespace": parts.namespace, "name": parts.name}, "spec": spec,
    }));
}

/// `<service>.<namespace>` of the listeners, clusters, and of what gRPC may ask for.
fn told(cluster: &TestCluster, workload: &str) -> [String; 3] {
    let model = cluster.compile();
    let short = |name: &str| name.rsplit('|').next().unwrap().to_owned();
    let join = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(" ");
    let sidecar = view::for_sidecar(&model, &named(workload)).unwrap();
    let grpc = view::for_grpc(&model, &named(workload)).unwrap();
    [
        join(sidecar.outbound.iter().map(|listener| short(&listener.name)).collect()),
        join(sidecar.clusters.iter().map(|cluster| short(&cluster.name)).collect()),
        join(grpc.targets.iter().map(|target| short(&target.name)).collect()),
    ]
}

fn listeners(cluster: &TestCluster, workload: &str) -> String {
    let [listeners, clusters, _] = told(cluster, workload);
    assert_eq!(listeners, clusters);
    listeners
}

const ALL: &str = "cart.shop log.ops pay.bank";

#[test]
fn a_service_that_says_nothing_is_visible_everywhere() {
    let cluster = mesh();
    for workload in ["bank/web", "shop/web"] {
        assert_eq!(told(&cluster, workload), [ALL, ALL, ALL]);
    }
}

#[test]
fn a_service_is_visible_where_it_says_and_nowhere_else() {
    let mut cluster = mesh();
    service(&mut cluster, "bank/pay", ".");
    assert_eq!(told(&cluster, "bank/web"), [ALL, ALL, ALL]);
    assert_eq!(told(&cluster, "shop/web"), ["cart.shop log.ops"; 3]);
    service(&mut cluster, "bank/pay", "shop");
    assert_eq!(told(&cluster, "shop/web"), [ALL, ALL, ALL]);
    assert_eq!(told(&cluster, "bank/web"), ["cart.shop log.ops"; 3], "its own namespace is not in the list");
    service(&mut cluster, "bank/pay", "~");
    assert_eq!(told(&cluster, "bank/web"), ["cart.shop log.ops"; 3]);
    service(&mut cluster, "bank/pay", "*");
    assert_eq!(told(&cluster, "shop/web"), [ALL, ALL, ALL]);
}

#[test]
fn a_workload_serves_what_nobody_may_know_of() {
    let mut cluster = mesh();
    cluster.workload("bank/pay-1", "x", "sidecar", json!([{"port": 80}])).bind(
        "bank/pay-1",
        "n1",
        "10.1.1.9",
    );
    service(&mut cluster, "bank/pay", "~");
    let model = cluster.compile();
    let inbound = view::for_sidecar(&model, &named("bank/pay-1")).unwrap().inbound;
    assert_eq!(inbound[0].server_names[0], "80.pay.bank.svc.mesh.local");
}

#[test]
fn an_imported_service_is_visible_where_its_cluster_says() {
    let mut cluster = mesh();
    cluster.import("east", "bank/ship", 80, 5).import("north", "bank/ship", 80, 9);
    cluster.allocate(&named("bank/ship"), &[80]);
    let visible = |cluster: &mut TestCluster, peer: &str, visibility: Visibility| {
        let peer = std::sync::Arc::make_mut(cluster.peers.get_mut(peer).unwrap());
        let import = peer.imports.get_mut(&named("bank/ship")).unwrap();
        std::sync::Arc::make_mut(import).visibility = visibility;
    };
    assert!(listeners(&cluster, "shop/web").contains("ship.bank"));
    visible(&mut cluster, "east", Visibility::Only(BTreeSet::from(["bank".to_owned()])));
    assert!(!listeners(&cluster, "shop/web").contains("ship.bank"), "the older export decides");
    assert!(listeners(&cluster, "bank/web").contains("ship.bank"));
    service(&mut cluster, "bank/ship", "shop");
    assert!(listeners(&cluster, "shop/web").contains("ship.bank"), "here the local service decides");
}

#[test]
fn a_sidecar_lists_what_its_workloads_are_told_unasked() {
    let cases: [(&[&str], &str); 11] = [
        (&["*/*"], ALL),
        (&["./*"], "cart.shop"),
        (&["./*", "ops/*"], "cart.shop log.ops"),
        (&["~/*"], ""),
        (&["*/pay.bank.svc.mesh.local"], "pay.bank"),
        (&["bank/pay.bank"], "pay.bank"),
        (&["*/pay.bank.svc.cluster.local"], "pay.bank"),
        (&["shop/pay.bank.svc.mesh.local"], ""),
        (&["*/*.ops.svc.mesh.local"], "log.ops"),
        (&["*/*.svc.cluster.local"], ALL),
        (&["*/*.example.com", "bank/pay"], ""),
    ];
    for (hosts, expected) in cases {
        let mut cluster = mesh();
        sidecar(&mut cluster, "shop/default", Value::Null, hosts);
        assert_eq!(listeners(&cluster, "shop/web"), expected, "{hosts:?}");
        assert_eq!(told(&cluster, "shop/web")[2], ALL, "gRPC asks by name, and may");
        assert_eq!(listeners(&cluster, "bank/web"), ALL, "another namespace");
    }
}

#[test]
fn a_sidecar_makes_nothing_visible() {
    let mut cluster = mesh();
    service(&mut cluster, "bank/pay", ".");
    sidecar(&mut cluster, "shop/default", Value::Null, &["*/*"]);
    assert_eq!(told(&cluster, "shop/web"), ["cart.shop log.ops"; 3]);
}

#[test]
fn a_sidecar_that_selects_the_workload_goes_before_its_namespaces_and_that_before_the_root_ones() {
    let mut cluster = mesh();
    cluster.workload("ops/web", "web", "sidecar", json!([]));
    sidecar(&mut cluster, "istio-system/default", Value::Null, &["./*"]);
    assert_eq!(listeners(&cluster, "shop/web"), "cart.shop", "'.' is the workload's namespace");
    assert_eq!(listeners(&cluster, "bank/web"), "pay.bank");
    sidecar(&mut cluster, "shop/default", Value::Null, &["ops/*"]);
    assert_eq!(listeners(&cluster, "shop/web"), "log.ops");
    sidecar(&mut cluster, "shop/zz-web", json!({"app": "web"}), &["bank/*"]);
    assert_eq!(listeners(&cluster, "shop/web"), "pay.bank");
    sidecar(&mut cluster, "shop/aa-other", json!({"app": "other"}), &["*/*"]);
    sidecar(&mut cluster, "istio-system/web", json!({"app": "web"}), &["*/*"]);
    assert_eq!(listeners(&cluster, "shop/web"), "pay.bank");
    assert_eq!(listeners(&cluster, "ops/web"), "log.ops", "a selector of the root namespace is for its own");
}

#[test]
fn of_several_sidecars_the_oldest_holds_and_the_name_decides_between_equally_old_ones() {
    let mut cluster = mesh();
    sidecar(&mut cluster, "shop/b", Value::Null, &["bank/*"]);
    sidecar(&mut cluster, "shop/a", Value::Null, &["ops/*"]);
    cluster.created(Kind::Sidecar, "shop/b", 7).created(Kind::Sidecar, "shop/a", 7);
    assert_eq!(listeners(&cluster, "shop/web"), "log.ops");
    cluster.created(Kind::Sidecar, "shop/b", 6);
    assert_eq!(listeners(&cluster, "shop/web"), "pay.bank");
    let model = cluster.compile();
    assert_eq!(model.workloads[&named("shop/web")].egress_scope, Some(named("shop/b")));
}

#[test]
fn where_a_route_in_scope_leads_there_is_a_cluster_and_no_listener() {
    let mut cluster = mesh();
    cluster.service("bank/pay-v2", "x", 80, json!(80)).service("bank/idle", "x", 80, json!(80));
    cluster.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "bank", "name": "pay"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "pay"}],
                 "rules": [{"backendRefs": [{"name": "pay-v2", "port": 80}]}]},
    }));
    sidecar(&mut cluster, "shop/default", Value::Null, &["*/pay.bank"]);
    let [listeners, clusters, _] = told(&cluster, "shop/web");
    assert_eq!((listeners.as_str(), clusters.as_str()), ("pay.bank", "pay-v2.bank pay.bank"));
    service(&mut cluster, "bank/pay-v2", ".");
    let [_, clusters, _] = told(&cluster, "shop/web");
    assert_eq!(clusters, "pay.bank", "a route makes nothing visible");
}
