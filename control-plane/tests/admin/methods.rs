//! Every gRPC method of the control plane, and the right that it takes.

use std::{collections::BTreeSet, path::Path};

use control_plane::authz::Action;
use xds_proto::envoy::service::status::v3::client_status_discovery_service_server as csds;

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One request; what comes back is refused or not when it begins.
    Asked,
    /// Who calls is looked at with the first message, so the stream is read to its end.
    Streamed,
}

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
    pub service: String,
    pub name: String,
    pub door: Door,
    pub shape: Shape,
    /// Whoever may take one of these actions may call it. Of others the last one is refused.
    pub actions: &'static [Action],
}

/// What is called `service.method`, with `isthmus.` left out.
#[rustfmt::skip]
const OURS: &[(&str, Door, Action)] = &[
    ("admin.v1.Admin.Apply", Door::Both, Action::Write),
    ("admin.v1.Admin.Delete", Door::Both, Action::Write),
    ("admin.v1.Admin.List", Door::Both, Action::Read),
    ("admin.v1.Admin.Watch", Door::Both, Action::Read),
    ("admin.v1.Admin.Status", Door::Both, Action::Status),
    ("admin.v1.Admin.CreateToken", Door::Both, Action::CreateToken),
    ("admin.v1.Admin.Join", Door::Both, Action::JoinMesh),
    ("admin.v1.Admin.Observe", Door::Both, Action::Observe),
    ("admin.v1.Admin.Wait", Door::Both, Action::Read),
    ("admin.v1.Admin.WaitHere", Door::Both, Action::Status),
    ("admin.v1.Explain.Flow", Door::Both, Action::Read),
    ("admin.v1.Recovery.Backup", Door::Both, Action::Backup),
    ("admin.v1.Recovery.Rejoin", Door::Both, Action::Backup),
    ("admin.v1.Recovery.Replace", Door::Both, Action::Raft),
    ("admin.v1.Replicas.Remove", Door::Both, Action::ManageReplicas),
    ("admin.v1.Replicas.SetRole", Door::Both, Action::ManageReplicas),
    ("admin.v1.Tokens.List", Door::Both, Action::CreateToken),
    ("admin.v1.Tokens.Revoke", Door::Both, Action::CreateToken),
    ("bootstrap.v1.Bootstrap.RegisterNode", Door::Mesh, Action::Bootstrap),
    ("bootstrap.v1.Bootstrap.RegisterReplica", Door::Mesh, Action::Bootstrap),
    ("bootstrap.v1.Certificates.SignWorkload", Door::Mesh, Action::SignWorkload),
    ("bootstrap.v1.Certificates.RenewNode", Door::Mesh, Action::RenewNode),
    ("bootstrap.v1.Certificates.ReportTrust", Door::Mesh, Action::ReportTrust),
    ("bootstrap.v1.Endpoints.Report", Door::Mesh, Action::ReportEndpoints),
    ("bootstrap.v1.Endpoints.Remove", Door::Mesh, Action::ReportEndpoints),
    ("bootstrap.v1.Endpoints.ReportFlows", Door::Mesh, Action::ReportEndpoints),
    ("ca.v1.CertificateAuthority.Status", Door::Both, Action::InspectAuthority),
    ("ca.v1.CertificateAuthority.ListNodes", Door::Both, Action::InspectAuthority),
    ("ca.v1.CertificateAuthority.RevokeNode", Door::Both, Action::EndRegistration),
    ("ca.v1.CertificateAuthority.RemoveNode", Door::Both, Action::EndRegistration),
    ("ca.v1.CertificateAuthority.Rotate", Door::Both, Action::RotateRoot),
    ("ca.v1.CertificateAuthority.CreateAdministrator", Door::Both, Action::ManageAdministrators),
    ("ca.v1.CertificateAuthority.ListAdministrators", Door::Both, Action::ManageAdministrators),
    ("ca.v1.CertificateAuthority.RevokeAdministrator", Door::Both, Action::ManageAdministrators),
    ("federation.v1.Federation.Join", Door::Mesh, Action::AcceptPeer),
    ("federation.v1.Federation.ConfirmTrust", Door::Mesh, Action::ConfirmTrust),
    ("raft.v1.Raft.AppendEntries", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.Vote", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.InstallSnapshot", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.Forward", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.ReadIndex", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.PreVote", Door::Mesh, Action::Raft),
    ("raft.v1.Raft.TakeOver", Door::Mesh, Action::Raft),
];

/// What a node agent serves on its own socket, and no control plane does.
pub const AGENTS: &[&str] = &[
    "local.v1.Cni.Add",
    "local.v1.Cni.Del",
    "local.v1.Cni.Check",
    "local.v1.Cni.Status",
    "local.v1.Agent.Status",
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

const XDS: &[Action] = &[Action::SubscribeAsPeer, Action::SubscribeAsNode];

impl Method {
    pub fn path(&self) -> String {
        format!("/{}/{}", self.service, self.name)
    }
}

/// All of them.
pub fn all() -> Vec<Method> {
    let ours = OURS.iter().map(|(name, door, action)| {
        let (service, name) = name.rsplit_once('.').unwrap();
        Method {
            service: format!("isthmus.{service}"),
            name: name.to_owned(),
            door: *door,
            shape: Shape::Asked,
            actions: std::slice::from_ref(action),
        }
    });
    let xds = control_plane::xds::server::methods().into_iter().map(|(service, name)| Method {
        service: service.to_owned(),
        name: name.to_owned(),
        door: Door::Mesh,
        shape: Shape::Streamed,
        actions: XDS,
    });
    let csds = ["StreamClientStatus", "FetchClientStatus"].map(|name| Method {
        service: csds::SERVICE_NAME.to_owned(),
        name: name.to_owned(),
        door: Door::Both,
        shape: Shape::Asked,
        actions: &[Action::ClientStatus],
    });
    ours.chain(csds).chain(xds).collect()
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
    let rows = OURS.iter().map(|(name, ..)| *name).chain(AGENTS.iter().copied());
    let known: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(known.len(), OURS.len() + AGENTS.len(), "a row is there twice");
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
