//! A node's agent without its kernel: the real registration, subscription, attestation, relay and secrets, on a unix
//! socket. Pods have loopback addresses, and every workload runs in this network namespace: a client says by its
//! node id which one it is, as gateways do.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use mesh_model::resource::NamespacedName;
use mesh_tls::{TrustBundles, certified, shared_bundles, shared_identity};
use node_agent::{
    bootstrap::{Upstream, register},
    cni::{Registry, SharedRegistry},
    engine::Engine,
    identity::{Callers, SdsService, Secrets, attest},
    maps::OnPaper,
    relay::Relay,
    subscribe::{Cache, Progress, Subscriber, subscribe_for_ever},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Server;
use xds_proto::{
    envoy::service::{
        discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
        load_stats::v3::load_reporting_service_server::LoadReportingServiceServer,
        secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer,
    },
    isthmus::bootstrap::v1::{
        RemoveEndpointRequest, ReportEndpointRequest, endpoints_client::EndpointsClient,
    },
};

/// `--pod-cidr` for clusters whose pods are processes of this machine.
pub const PODS: [&str; 2] = ["--pod-cidr", "127.80.0.0/16"];

/// A running agent; stopped when dropped.
pub struct Agent {
    pub socket: PathBuf,
    upstream: Upstream,
    slice: String,
    _tasks: JoinSet<()>,
    _folder: TempDir,
}

impl Agent {
    /// Registers and serves. `replicas` in order of preference; none: as registration tells.
    pub async fn start(token: &str, node: &str, replicas: Vec<String>, workloads: &[&str]) -> Self {
        Self::start_at("192.0.2.7", token, node, replicas, workloads).await
    }

    /// The same, as a second node: an address is that of one alone.
    #[allow(dead_code, reason = "not every test has two")]
    pub async fn start_at(
        address: &str,
        token: &str,
        node: &str,
        replicas: Vec<String>,
        workloads: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = address.parse().unwrap();
        let state = register(token, node, address, None).await.unwrap();
        let identity = shared_identity(Some(certified(state.identity().unwrap()).unwrap()));
        let mut bundles = TrustBundles::new();
        bundles.insert(state.trust_domain.clone(), state.root_certificates()).unwrap();
        let replicas = if replicas.is_empty() { state.replicas.clone() } else { replicas };
        let upstream = Upstream::new(&state, replicas, identity, shared_bundles(bundles)).unwrap();
        let engine = Engine::new(address, Box::<OnPaper>::default()).unwrap();
        let registry = SharedRegistry::new(Registry::open(folder.path(), state.pod_cidr).unwrap());
        let names: BTreeSet<_> = workloads.iter().map(|name| NamespacedName::parse(name).unwrap()).collect();
        let callers = Callers::new(registry, names).unwrap();
        let secrets = Secrets::new(folder.path(), engine.clone(), upstream.clone()).unwrap();
        let mut tasks = JoinSet::new();
        let subscriber = Subscriber {
            node: state.node.clone(),
            cluster: state.cluster.clone(),
            upstream: upstream.clone(),
            engine: engine.clone(),
            cache: Cache::new(folder.path()).unwrap(),
            held: Vec::new(),
            progress: Progress::default(),
        };
        tasks.spawn(subscribe_for_ever(subscriber, || {}));
        let socket = folder.path().join("agent.sock");
        let listener = mesh_tls::grpc::bind_unix(&socket, 0o600).unwrap();
        let relay = Relay::new(callers.clone(), upstream.clone(), engine.clone());
        let sds = SdsService::new(callers, secrets, engine);
        tasks.spawn(async move {
            Server::builder()
                .add_service(LoadReportingServiceServer::new(relay.clone()))
                .add_service(AggregatedDiscoveryServiceServer::new(relay))
                .add_service(SecretDiscoveryServiceServer::new(sds))
                .serve_with_incoming(attest(listener))
                .await
                .unwrap();
        });
        let slice = state.pod_cidr.network().to_string();
        Self { socket, upstream, slice, _tasks: tasks, _folder: folder }
    }

    /// An address of this node's slice.
    pub fn address(&self, host: u8) -> IpAddr {
        let (prefix, _) = self.slice.rsplit_once('.').unwrap();
        format!("{prefix}.{host}").parse().unwrap()
    }

    /// Reports a pod, as CNI does.
    pub async fn bind(&self, name: &str, host: u8) {
        let name = NamespacedName::parse(name).unwrap();
        let request = ReportEndpointRequest {
            namespace: name.namespace.clone(),
            workload: name.name.clone(),
            addresses: vec![self.address(host).to_string()],
            ready: true,
        };
        let report = |channel| {
            let request = request.clone();
            async move { EndpointsClient::new(channel).report(request).await }
        };
        self.upstream.call(report).await.unwrap();
    }

    /// The pod is gone.
    pub async fn unbind(&self, name: &str) {
        let name = NamespacedName::parse(name).unwrap();
        let request =
            RemoveEndpointRequest { namespace: name.namespace.clone(), workload: name.name.clone() };
        let remove = |channel| {
            let request = request.clone();
            async move { EndpointsClient::new(channel).remove(request).await }
        };
        self.upstream.call(remove).await.unwrap();
    }
}
