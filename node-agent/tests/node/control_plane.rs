//! The least that an agent needs of a control plane, on real mTLS: registration, certificates, reports, and a
//! The least that an agent needs of a control plane, on real mTLS: registration, certificates, reports, and a
//! stream that sends what it has not sent yet. The benchmark of the data plane has it, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clustermesh::token::{JoinToken, Purpose};
use futures::{Stream, StreamExt};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, ClientAuth, Identity, TrustBundles, certified, csr, fingerprint,
    issue::{Issuer, LEAF_TTL, Root},
    jwt::JwtKey,
    server_config, shared_bundles, shared_identity,
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use xds_proto::{
    Name,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
    isthmus::{agent::v1 as agent, bootstrap::v1::*},
    to_any,
};

pub const DOOR: &str = "127.0.0.1:19443";

/// Resources of one response.
const CHUNK: usize = 2_000;

/// Type URL to name to the version in which it came, and the message.
type Resources = BTreeMap<String, BTreeMap<String, (u64, Option<Any>)>>;

/// Shared by the services and the test, which gets copies: an assertion that failed with one of the locks held
/// would take the services down with it, and their panics would be the loudest.
pub struct State {
    pub domain: TrustDomain,
    root: Root,
    issuer: Issuer,
    pub jwt_key: JwtKey,
    resources: Mutex<Resources>,
    /// The newest version of them.
    newest: watch::Sender<u64>,
    /// Workloads that may be reported.
    declared: Mutex<BTreeSet<String>>,
    reported: Mutex<BTreeMap<String, String>>,
    /// Workloads as they were last reported: ready or not.
    ready: Mutex<BTreeMap<String, bool>>,
    flows: Mutex<Vec<Flow>>,
    /// What agents refused, in their words.
    refused: Mutex<Vec<String>>,
    /// Workloads for which streams were relayed.
    relayed: Mutex<Vec<String>>,
}

impl State {
    pub fn new() -> Arc<Self> {
        let domain = TrustDomain::parse("west.example").unwrap();
        let now = SystemTime::now();
        let root = Root::generate(domain.clone(), now).unwrap();
        let key = Issuer::generate().unwrap();
        let certificate = root.sign_issuer(&key.csr(&domain).unwrap(), now).unwrap();
        let state = Self {
            root,
            issuer: key.certified(certificate).unwrap(),
            jwt_key: JwtKey::generate().unwrap(),
            resources: Mutex::default(),
            newest: watch::Sender::new(0),
            declared: Mutex::default(),
            reported: Mutex::default(),
            ready: Mutex::default(),
            flows: Mutex::default(),
            refused: Mutex::default(),
            relayed: Mutex::default(),
            domain: domain.clone(),
        };
        let roots = vec![state.root.certificate().to_vec()];
        let bundle = agent::TrustBundle {
            trust_domain: domain.to_string(),
            roots,
            jwt_keys: vec![state.jwt_key.public().point().to_vec()],
            ..Default::default()
        };
        state.put(domain.as_str(), &bundle);
        Arc::new(state)
    }

    pub fn token(&self) -> String {
        JoinToken {
            purpose: Purpose::Node,
            node: None,
            cluster: "west".into(),
            id: "t1".into(),
            secret: [7; 32],
            doors: vec![DOOR.into()],
            root_sha256: fingerprint(self.root.certificate()),
            expires_unix: u64::MAX / 2,
        }
        .encode()
        .unwrap()
    }

    pub fn put<M: Name>(&self, name: &str, message: &M) {
        self.put_all([(name.to_owned(), to_any(message))]);
    }

    /// Many at once: they are told together.
    pub fn put_all(&self, messages: impl IntoIterator<Item = (String, Any)>) {
        let mut all = self.resources.lock().unwrap();
        let version = *self.newest.borrow() + 1;
        for (name, message) in messages {
            all.entry(message.type_url.clone()).or_default().insert(name, (version, Some(message)));
        }
        drop(all);
        self.newest.send_replace(version);
    }

    /// There is no such resource any more.
    pub fn take_back<M: Name>(&self, name: &str) {
        let mut all = self.resources.lock().unwrap();
        let version = *self.newest.borrow() + 1;
        all.entry(M::type_url()).or_default().insert(name.to_owned(), (version, None));
        drop(all);
        self.newest.send_replace(version);
    }

    /// What has come and gone since a version, in responses of a bounded size.
    fn since(&self, sent: u64, version: u64) -> Vec<DeltaDiscoveryResponse> {
        let all = self.resources.lock().unwrap();
        let mut responses = Vec::new();
        for (type_url, resources) in all.iter() {
            let new = resources.iter().filter(|(_, (came, _))| *came > sent);
            let (new, gone): (Vec<_>, Vec<_>) = new.partition(|(_, (_, message))| message.is_some());
            let new: Vec<Resource> = new
                .into_iter()
                .map(|(name, (came, message))| Resource {
                    name: name.clone(),
                    version: came.to_string(),
                    resource: message.clone(),
                    ..Default::default()
                })
                .collect();
            if !gone.is_empty() {
                responses.push(DeltaDiscoveryResponse {
                    type_url: type_url.clone(),
                    nonce: format!("{version}-gone-{type_url}"),
                    removed_resources: gone.into_iter().map(|(name, _)| name.clone()).collect(),
                    ..Default::default()
                });
            }
            for (place, chunk) in new.chunks(CHUNK).enumerate() {
                responses.push(DeltaDiscoveryResponse {
                    type_url: type_url.clone(),
                    nonce: format!("{version}-{place}-{type_url}"),
                    resources: chunk.to_vec(),
                    ..Default::default()
                });
            }
        }
        responses
    }

    /// Says which root leaves are to chain to: with one that they don't, nodes have all certificates made anew.
    pub fn activate(&self, root_sha256: &str) {
        let bundle = agent::TrustBundle {
            trust_domain: self.domain.to_string(),
            roots: vec![self.root.certificate().to_vec()],
            active_root: root_sha256.to_owned(),
            jwt_keys: vec![self.jwt_key.public().point().to_vec()],
            ..Default::default()
        };
        self.put(self.domain.as_str(), &bundle);
    }

    /// Lets a workload be reported.
    pub fn declare(&self, workload: &str) {
        self.declared.lock().unwrap().insert(workload.to_owned());
    }

    /// The address that was reported for a workload.
    pub fn reported(&self, workload: &str) -> Option<String> {
        self.reported.lock().unwrap().get(workload).cloned()
    }

    /// Whether a workload was last reported as ready.
    pub fn is_ready(&self, workload: &str) -> bool {
        self.ready.lock().unwrap().get(workload) == Some(&true)
    }

    /// As what a workload was last reported.
    pub fn told_ready(&self, workload: &str) -> Option<bool> {
        self.ready.lock().unwrap().get(workload).copied()
    }

    /// Takes a workload to be elsewhere, and forgets whether it is ready.
    pub fn lose(&self, workload: &str) {
        let elsewhere = agent::WorkloadAddress {
            name: workload.into(),
            addresses: vec!["10.1.9.9".into()],
            identity: 300,
            ..Default::default()
        };
        self.ready.lock().unwrap().remove(workload);
        self.put(workload, &elsewhere);
    }

    pub fn flows(&self) -> Vec<Flow> {
        self.flows.lock().unwrap().clone()
    }

    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    pub fn relayed(&self) -> Vec<String> {
        self.relayed.lock().unwrap().clone()
    }

    fn sign(&self, csr: &[u8], id: &SpiffeId) -> Vec<Vec<u8>> {
        let chain = self.issuer.sign(csr, id, LEAF_TTL, SystemTime::now()).unwrap();
        chain.into_iter().map(|certificate| certificate.to_vec()).collect()
    }

    /// Serves until the test ends.
    pub async fn serve(self: Arc<Self>) {
        let id = SpiffeId::replica(&self.domain, 1);
        let (csr, key) = csr::generate(&id).unwrap();
        let mut chain = self.issuer.sign(&csr, &id, LEAF_TTL, SystemTime::now()).unwrap();
        chain.push(self.root.certificate().clone());
        let mut bundles = TrustBundles::new();
        bundles.insert(self.domain.clone(), vec![self.root.certificate().clone()]).unwrap();
        let tls = server_config(
            shared_identity(Some(certified(Identity { chain, key }).unwrap())),
            shared_bundles(bundles),
            ClientAuth::Optional,
            &[ALPN_H2],
        )
        .unwrap();
        let listener = tokio::net::TcpListener::bind(DOOR).await.unwrap();
        Server::builder()
            .add_service(bootstrap_server::BootstrapServer::from_arc(Arc::new(Fake(self.clone()))))
            .add_service(certificates_server::CertificatesServer::new(Fake(self.clone())))
            .add_service(endpoints_server::EndpointsServer::new(Fake(self.clone())))
            .add_service(AggregatedDiscoveryServiceServer::new(Fake(self)))
            .serve_with_incoming(mesh_tls::grpc::incoming(listener, tls))
            .await
            .unwrap();
    }
}

struct Fake(Arc<State>);

#[tonic::async_trait]
impl bootstrap_server::Bootstrap for Fake {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let request = request.into_inner();
        let id = SpiffeId::node(&self.0.domain, &request.node);
        Ok(Response::new(RegisterNodeResponse {
            chain: self.0.sign(&request.csr, &id),
            roots: vec![self.0.root.certificate().to_vec()],
            cluster: "west".into(),
            trust_domain: self.0.domain.to_string(),
            pod_cidr: "10.1.1.0/24".into(),
            pod_cidr6: if request.address6.is_empty() { String::new() } else { "fd00:1::100/120".into() },
            service_cidr: "10.101.0.0/16".into(),
            replicas: vec!["127.0.0.1:1".into(), DOOR.into()],
            mesh_domain: "mesh.local".into(),
            ..Default::default()
        }))
    }

    async fn register_replica(
        &self,
        _: Request<RegisterReplicaRequest>,
    ) -> Result<Response<RegisterReplicaResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl certificates_server::Certificates for Fake {
    async fn sign_workload(
        &self,
        request: Request<SignWorkloadRequest>,
    ) -> Result<Response<SignWorkloadResponse>, Status> {
        let request = request.into_inner();
        let id = SpiffeId::workload(&self.0.domain, &request.namespace, &request.workload);
        Ok(Response::new(SignWorkloadResponse { chain: self.0.sign(&request.csr, &id) }))
    }

    async fn sign_jwt(&self, request: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        let request = request.into_inner();
        let id = SpiffeId::workload(&self.0.domain, &request.namespace, &request.workload);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let signed = self.0.jwt_key.sign(&id, &request.audiences, request.ttl_seconds.into(), now);
        let (token, expires_unix) = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(SignJwtResponse { token, spiffe_id: id.to_string(), expires_unix }))
    }

    async fn renew_node(&self, _: Request<RenewNodeRequest>) -> Result<Response<RenewNodeResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn report_trust(
        &self,
        _: Request<ReportTrustRequest>,
    ) -> Result<Response<ReportTrustResponse>, Status> {
        Ok(Response::new(ReportTrustResponse {}))
    }
}

#[tonic::async_trait]
impl endpoints_server::Endpoints for Fake {
    async fn report(
        &self,
        request: Request<ReportEndpointRequest>,
    ) -> Result<Response<ReportEndpointResponse>, Status> {
        let request = request.into_inner();
        let name = format!("{}/{}", request.namespace, request.workload);
        if !self.0.declared.lock().unwrap().contains(&name) {
            return Err(Status::failed_precondition(format!("there is no workload {name:?}")));
        }
        let address = request.addresses[0].clone();
        let before = self.0.reported.lock().unwrap().insert(name.clone(), address.clone());
        self.0.ready.lock().unwrap().insert(name.clone(), request.ready);
        // What is told of it is the same, ready or not.
        if before == Some(address) {
            return Ok(Response::new(ReportEndpointResponse::default()));
        }
        let local = local(&request.namespace, &request.workload);
        let address = agent::WorkloadAddress {
            name: name.clone(),
            addresses: request.addresses,
            identity: local.identity,
            ..Default::default()
        };
        self.0.put(&name, &address);
        self.0.put(&name, &local);
        Ok(Response::new(ReportEndpointResponse::default()))
    }

    async fn remove(
        &self,
        request: Request<RemoveEndpointRequest>,
    ) -> Result<Response<RemoveEndpointResponse>, Status> {
        let request = request.into_inner();
        let name = format!("{}/{}", request.namespace, request.workload);
        self.0.reported.lock().unwrap().remove(&name);
        self.0.ready.lock().unwrap().remove(&name);
        Ok(Response::new(RemoveEndpointResponse::default()))
    }

    async fn report_node(
        &self,
        _: Request<ReportNodeRequest>,
    ) -> Result<Response<ReportNodeResponse>, Status> {
        Ok(Response::new(ReportNodeResponse::default()))
    }

    async fn report_flows(
        &self,
        request: Request<Streaming<FlowBatch>>,
    ) -> Result<Response<ReportFlowsResponse>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.0.flows.lock().unwrap().extend(batch.flows);
        }
        Ok(Response::new(ReportFlowsResponse {}))
    }
}

pub fn local(namespace: &str, workload: &str) -> agent::LocalEndpoint {
    let identity = 256 + workload.bytes().map(u32::from).sum::<u32>();
    agent::LocalEndpoint {
        name: format!("{namespace}/{workload}"),
        identity,
        spiffe_id: format!("spiffe://west.example/ns/{namespace}/sa/{workload}"),
        policy_class: if workload.starts_with("pay") { 2 } else { 1 },
        ..Default::default()
    }
}

/// The identity number that a workload gets here.
pub fn identity(workload: &str) -> u32 {
    local("shop", workload).identity
}

type Responses<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let workload = request.metadata().get("x-isthmus-workload").cloned();
        let workload = workload.ok_or_else(|| Status::permission_denied("no workload"))?;
        self.0.relayed.lock().unwrap().push(workload.to_str().unwrap().to_owned());
        // Says back what was asked for.
        let echo = request.into_inner().map(|request| {
            let request = request?;
            Ok(DiscoveryResponse {
                type_url: request.type_url,
                version_info: "echo".into(),
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(echo)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let state = self.0.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(error) = request.error_detail {
                    state.refused.lock().unwrap().push(error.message);
                }
            }
        });
        let (state, mut sent) = (self.0.clone(), 0);
        let responses = WatchStream::new(self.0.newest.subscribe()).flat_map(move |version| {
            let new = state.since(sent, version);
            sent = version;
            futures::stream::iter(new.into_iter().map(Ok))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// Waits for something without a fixed delay: looks again at short intervals, up to a minute: the kernel's verifier
/// takes seconds over the programs of one agent, and other tests start agents at the same time.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(60), what, look)
}

/// The same with another patience.
pub fn eventually_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
