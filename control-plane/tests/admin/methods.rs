//! Every gRPC method of the control plane, and where it is served. The right that each takes is the program's own list.

use std::{collections::BTreeSet, path::Path};

use control_plane::{authz::Action, doors::methods};
use xds_proto::{
    envoy::service::status::v3::client_status_discovery_service_server as csds,
    hubble::observer::observer_server as observer,
};

/// Where it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The mesh door only.
    Mesh,
    /// The mesh door, and the administrators' socket.
    Both,
}

/// One method.
#[derive(Debug, Clone)]
pub struct Method {
    pub path: String,
    pub door: Door,
    /// Whoever may take one of these actions may call it. Of others the last one is refused.
    pub actions: &'static [Action],
}

/// What belongs on a node agent's own socket, and no control plane serves. (`Dns` is declared for the DNS proxy; no agent
/// serves it yet.)
pub const AGENTS: &[&str] = &[
    "local.v1.Cni.Add",
    "local.v1.Cni.Del",
    "local.v1.Cni.Check",
    "local.v1.Cni.Status",
    "local.v1.Cni.Gc",
    "local.v1.Agent.Status",
    "local.v1.Agent.VerifyMaps",
    "local.v1.Agent.Stop",
    "local.v1.Dns.Follow",
    "local.v1.Dns.Admit",
    "local.v1.Dns.Note",
    "local.v1.Dns.Names",
    "local.v1.Dns.Count",
    "local.v1.Redirects.Register",
];

/// Services of Envoy's that somebody may look for here. ADS and its kin are asked of the server itself.
pub const NOT_SERVED: &[&str] = &[
    "envoy.service.discovery.v3.AggregatedDiscoveryService/FetchAggregatedResources",
    "envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters",
    "envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
    "envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck",
    "envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
    "envoy.service.auth.v3.Authorization/Check",
    "envoy.service.metrics.v3.MetricsService/StreamMetrics",
    "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    "envoy.service.trace.v3.TraceService/StreamTraces",
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// All of them.
pub fn all() -> Vec<Method> {
    let both = |service: &str| {
        service.starts_with("isthmus.admin.")
            || service.starts_with("isthmus.ca.")
            || service == csds::SERVICE_NAME
            || service == observer::SERVICE_NAME
    };
    let door = |service: &str| if both(service) { Door::Both } else { Door::Mesh };
    methods::all()
        .map(|method| Method { path: method.path(), door: door(&method.service), actions: method.actions })
        .collect()
}

/// `v1.Service.Method` of every `.proto` file that is compiled.
fn declared() -> BTreeSet<String> {
    fn files(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() { files(&path, into) } else { into.push(path) }
        }
    }
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../xds-proto/proto/isthmus"), &mut found);
    let mut methods = BTreeSet::new();
    for path in found {
        let text = std::fs::read_to_string(path).unwrap();
        let (mut package, mut service) = ("", "");
        for line in text.lines().map(str::trim) {
            let word = |after: &str| line.strip_prefix(after)?.split([' ', ';', '(', '{']).next();
            package = word("package isthmus.").unwrap_or(package);
            service = word("service ").unwrap_or(service);
            if let Some(method) = word("rpc ") {
                methods.insert(format!("{package}.{service}.{method}"));
            }
        }
    }
    methods
}

#[test]
fn every_method_that_is_declared_has_its_row() {
    let declared = declared();
    assert!(declared.len() > 40, "{declared:?}");
    let served = methods::all()
        .filter_map(|method| Some(format!("{}.{}", method.service.strip_prefix("isthmus.")?, method.name)));
    let known: BTreeSet<String> = served.chain(AGENTS.iter().map(|&name| name.to_owned())).collect();
    let without: Vec<&String> = declared.difference(&known).collect();
    let of_nothing: Vec<&String> = known.difference(&declared).collect();
    assert!(without.is_empty() && of_nothing.is_empty(), "no row: {without:?}; no method: {of_nothing:?}");
}

#[test]
fn every_action_is_asked_for_by_some_method() {
    let asked: Vec<Action> = all().iter().flat_map(|method| method.actions.iter().copied()).collect();
    let unused: Vec<Action> = Action::ALL.into_iter().filter(|action| !asked.contains(action)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
