//! The other end of the proxy's socket: a small delta xDS server that serves hand-made resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::Stream;
use proxy::{Options, Proxy, overload::Ceilings, shared::Home};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
                aggregated_discovery_service_server::{
                    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
                },
            },
            secret::v3::secret_discovery_service_server::{
                SecretDiscoveryService, SecretDiscoveryServiceServer,
            },
        },
    },
    google::protobuf::Any,
    to_any,
};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct State {
    /// By type and name: version and message.
    resources: BTreeMap<(String, String), (u64, Any)>,
    version: u64,
}

#[derive(Clone)]
struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    nacks: mpsc::UnboundedSender<(String, String)>,
}

/// The server, and what the proxy refused.
pub struct Control {
    server: Server,
    nacks: mpsc::UnboundedReceiver<(String, String)>,
    folder: TempDir,
}

impl Control {
    /// Serves on a socket in a folder of its own.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (nack_sender, nacks) = mpsc::unbounded_channel();
        let server = Server { state: Arc::default(), changed: watch::Sender::new(0), nacks: nack_sender };
        let listener = mesh_tls::grpc::bind_unix(folder.path().join("agent.sock"), 0o600).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(server.clone()))
            .add_service(SecretDiscoveryServiceServer::new(server.clone()))
            .serve_with_incoming(mesh_tls::grpc::incoming_unix(listener));
        tokio::spawn(serving);
        Self { server, nacks, folder }
    }

    /// Where it serves.
    pub fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// A proxy that subscribes here.
    pub async fn proxy(&self) -> Proxy {
        self.proxy_within(Ceilings::default(), Home::default()).await
    }

    /// The same with ceilings, and at a place.
    pub async fn proxy_within(&self, ceilings: Ceilings, home: Home) -> Proxy {
        let options = Options {
            agent_socket: self.folder.path().join("agent.sock"),
            node_id: "proxy~test/one".to_owned(),
            cluster: String::new(),
            admin: Some("127.0.0.1:0".parse().unwrap()),
            ready_file: None,
            access_log: false,
        };
        Proxy::start_within(options, ceilings, home).await.unwrap()
    }

    /// Serves these from now on.
    pub fn set(&self, resources: impl IntoIterator<Item = (String, String, Any)>) {
        self.change(|state, version| {
            for (type_url, name, resource) in resources {
                state.resources.insert((type_url, name), (version, resource));
            }
        });
    }

    /// Serves one of these no more.
    pub fn remove<M: Name>(&self, name: &str) {
        self.change(|state, _| {
            state.resources.remove(&(M::type_url(), name.to_owned()));
        });
    }

    fn change(&self, edit: impl FnOnce(&mut State, u64)) {
        let mut state = self.server.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        edit(&mut state, version);
        drop(state);
        self.server.changed.send_replace(version);
    }

    /// The next refusal: its type and its words.
    pub async fn nack(&mut self) -> (String, String) {
        self.nacks.recv().await.unwrap()
    }
}

pub fn named(resource: impl Into<Named>) -> (String, String, Any) {
    let Named(type_url, name, any) = resource.into();
    (type_url, name, any)
}

/// A resource of any type, with its name.
pub struct Named(String, String, Any);

macro_rules! resource {
    ($($type:ty => $field:ident),*) => {
        $(impl From<$type> for Named {
            fn from(resource: $type) -> Self {
                Self(<$type>::type_url(), resource.$field.clone(), to_any(&resource))
            }
        })*
    };
}
resource!(Listener => name, Cluster => name, RouteConfiguration => name, ClusterLoadAssignment => cluster_name, Secret => name);

#[derive(Default)]
struct Subscribed {
    wildcard: bool,
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    answered: bool,
}

impl Server {
    fn serve(&self, mut requests: Streaming<DeltaDiscoveryRequest>) -> Responses<DeltaDiscoveryResponse> {
        let (sender, receiver) = mpsc::channel(64);
        let server = self.clone();
        tokio::spawn(async move {
            let mut changed = server.changed.subscribe();
            let mut types: BTreeMap<String, Subscribed> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => server.take(&mut types, request),
                        _ => return,
                    },
                    Ok(()) = changed.changed() => {}
                }
                for response in server.news(&mut types) {
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    fn take(&self, types: &mut BTreeMap<String, Subscribed>, request: DeltaDiscoveryRequest) {
        if let Some(error) = request.error_detail {
            self.nacks.send((request.type_url.clone(), error.message)).unwrap();
        }
        let new = !types.contains_key(&request.type_url);
        let everything = [Listener::type_url(), Cluster::type_url()].contains(&request.type_url);
        let subscribed = types.entry(request.type_url).or_default();
        // As Envoy says it.
        subscribed.wildcard |= new && everything && request.resource_names_subscribe.is_empty();
        for (name, version) in request.initial_resource_versions {
            subscribed.sent.insert(name, version.parse().unwrap());
        }
        for name in request.resource_names_subscribe {
            match name.as_str() {
                "*" => subscribed.wildcard = true,
                _ => drop(subscribed.names.insert(name)),
            }
        }
        for name in request.resource_names_unsubscribe {
            subscribed.names.remove(&name);
            subscribed.sent.remove(&name);
        }
    }

    /// What has changed for a client. A name that does not exist is left unanswered: the proxy has to wait for it.
    fn news(&self, types: &mut BTreeMap<String, Subscribed>) -> Vec<DeltaDiscoveryResponse> {
        let state = self.state.lock().unwrap();
        let mut responses = vec![];
        for (type_url, subscribed) in types {
            let mut resources = vec![];
            let of_type = state.resources.iter().filter(|((t, _), _)| t == type_url);
            for ((_, name), (version, any)) in of_type {
                let wanted = subscribed.wildcard || subscribed.names.contains(name);
                if wanted && subscribed.sent.get(name) != Some(version) {
                    subscribed.sent.insert(name.clone(), *version);
                    resources.push(Resource {
                        name: name.clone(),
                        version: version.to_string(),
                        resource: Some(any.clone()),
                        ..Resource::default()
                    });
                }
            }
            let gone = |name: &String| !state.resources.contains_key(&(type_url.clone(), name.clone()));
            let removed: Vec<String> = subscribed.sent.keys().filter(|n| gone(n)).cloned().collect();
            subscribed.sent.retain(|name, _| !removed.contains(name));
            let first = subscribed.wildcard && !std::mem::replace(&mut subscribed.answered, true);
            if first || !resources.is_empty() || !removed.is_empty() {
                responses.push(DeltaDiscoveryResponse {
                    system_version_info: state.version.to_string(),
                    resources,
                    type_url: type_url.clone(),
                    removed_resources: removed,
                    nonce: format!("{}", state.version),
                    ..DeltaDiscoveryResponse::default()
                });
            }
        }
        responses
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.serve(request.into_inner())))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Server {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.serve(request.into_inner())))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("delta only"))
    }
}
