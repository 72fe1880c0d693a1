//! The server over real connections: a unix socket, TCP, our own client, and raw streams.

mod encoding;
mod ends;
mod following;
mod one_type;
mod past;
mod services;
mod telling;
mod unread;

use std::{
    collections::BTreeSet,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Status, transport::Channel};
use xds_client::{Config, SubscribeCommand, Subscription, Update};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{protobuf::Any, rpc},
};

use super::*;
use crate::xds::{
    Client, Encoded, Lagging, ResourceSet, Subscriber,
    kinds::{CLUSTER as CDS, ENDPOINT as EDS, SECRET, SERVICE},
};

const WAIT: Duration = Duration::from_secs(20);

/// The same view for everybody; node ids that begin with `intruder` are not let in.
struct TestViews {
    set: Mutex<Arc<ResourceSet>>,
    revision: watch::Sender<u64>,
    /// Who has asked.
    clients: Mutex<BTreeSet<Client>>,
    /// Who is told of revisions, if streams sleep until they are.
    told: OnceLock<Arc<Subscribers>>,
}

impl TestViews {
    fn new(revision: u64, resources: &[(&str, &str, &str)]) -> Arc<Self> {
        let views = Self {
            set: Mutex::default(),
            revision: watch::Sender::new(0),
            clients: Mutex::default(),
            told: OnceLock::new(),
        };
        views.publish(revision, resources);
        Arc::new(views)
    }

    fn publish(&self, revision: u64, resources: &[(&str, &str, &str)]) {
        self.store(revision, resources);
        self.tell(revision);
    }

    /// It is what there is from now on; nobody is told so.
    fn store(&self, revision: u64, resources: &[(&str, &str, &str)]) {
        let mut set = ResourceSet::new(revision);
        for (type_url, name, contents) in resources {
            let any = Any { type_url: (*type_url).into(), value: contents.as_bytes().to_vec() };
            set.insert(Encoded::from_any(*name, any));
        }
        let mut current = self.set.lock().unwrap();
        set.share_with(&current);
        *current = Arc::new(set);
    }

    fn tell(&self, revision: u64) {
        if let Some(subscribers) = self.told.get() {
            let before = *self.revision.borrow();
            for client in &*self.clients.lock().unwrap() {
                subscribers.concern(client, before, revision);
            }
            subscribers.reached(revision);
        }
        self.revision.send_replace(revision);
    }
}

impl Views for TestViews {
    fn resources(&self, client: &Client) -> Arc<ResourceSet> {
        self.clients.lock().unwrap().insert(client.clone());
        self.set.lock().unwrap().clone()
    }

    fn tells(&self) -> bool {
        self.told.get().is_some()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn authorize(&self, _: &PeerIdentity, node_id: &str, workload: Option<&str>) -> Result<Client, Status> {
        if node_id.starts_with("intruder") || (node_id == "leaver" && *self.revision.borrow() > 1) {
            return Err(Status::permission_denied("intruders may have nothing"));
        }
        Ok(match workload {
            Some(workload) => Client::Gateway { workload: workload.to_owned() },
            None => Client::Agent { node: node_id.to_owned() },
        })
    }
}

struct Running {
    views: Arc<TestViews>,
    server: XdsServer<TestViews>,
    address: std::net::SocketAddr,
    /// Where our own clients connect to.
    route: Arc<Mutex<std::net::SocketAddr>>,
}

impl Running {
    async fn start(views: Arc<TestViews>) -> Self {
        Self::with(views, |_| {}).await
    }

    async fn with(views: Arc<TestViews>, change: impl FnOnce(&mut Options)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut options = Options::new("test");
        change(&mut options);
        let server = XdsServer::new(views.clone(), Arc::new(Subscribers::new()), options);
        let serving = keepalive(tonic::transport::Server::builder())
            .add_routes(server.routes())
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        Self { views, server, address, route: Arc::new(Mutex::new(address)) }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// Subscribes with our own client; what it accepts and refuses is decided by `accept`.
    fn subscribe(
        &self,
        node: &str,
        subscriptions: Vec<Subscription>,
        accept: fn(&Update) -> bool,
    ) -> Follower {
        let route = self.route.clone();
        let (commands, receiver) = mpsc::channel(4);
        let (sender, updates) = mpsc::unbounded_channel();
        let connect = move || {
            let address = *route.lock().unwrap();
            async move { Channel::from_shared(format!("http://{address}")).unwrap().connect().await }
        };
        let handler = move |update: Update| {
            let accepted = accept(&update);
            sender.send(update).map_err(|e| e.to_string())?;
            if accepted { Ok(()) } else { Err("not wanted".to_owned()) }
        };
        let config = Config::new(xds_client::node(node, "west"), subscriptions);
        let task = tokio::spawn(xds_client::run(config, connect, handler, receiver));
        Follower { commands, updates, task }
    }

    async fn acked(&self, revision: u64) -> Vec<Lagging> {
        self.server.subscribers().wait_acked(revision, WAIT).await
    }

    /// The registry, once it looks as expected.
    async fn until(&self, expected: impl Fn(&[Subscriber]) -> bool) -> Vec<Subscriber> {
        tokio::time::timeout(WAIT, async {
            loop {
                let list = self.server.subscribers().list();
                if expected(&list) {
                    return list;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the registry did not come to look as expected")
    }
}

struct Follower {
    commands: mpsc::Sender<SubscribeCommand>,
    updates: mpsc::UnboundedReceiver<Update>,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// The next update, as `+name=contents -name`.
    async fn next(&mut self) -> String {
        let update = tokio::time::timeout(WAIT, self.updates.recv()).await.unwrap().unwrap();
        let added = update
            .added
            .iter()
            .map(|r| format!("+{}={}", r.name, String::from_utf8_lossy(&r.resource.value)));
        added.chain(update.removed.iter().map(|name| format!("-{name}"))).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn always(_: &Update) -> bool {
    true
}

/// How a SotW stream ends that begins with an (adjusted) request for clusters.
async fn end_of(running: &Running, change: impl FnOnce(&mut DiscoveryRequest)) -> Status {
    let mut first = DiscoveryRequest { type_url: EDS.into(), ..Default::default() };
    // What a NACK carries must not matter on a first request.
    first.error_detail = Some(rpc::Status { code: 3, message: "stale".into(), details: vec![] });
    change(&mut first);
    let (requests, receiver) = mpsc::channel(1);
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let mut responses = match client.stream_aggregated_resources(ReceiverStream::new(receiver)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match tokio::time::timeout(WAIT, responses.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("ended"),
            Err(status) => return status,
        }
    }
}

/// A SotW stream that begins with these names.
async fn raw(
    running: &Running,
    node: &str,
    type_url: &str,
    names: &[&str],
) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    let node = Some(Node { id: node.into(), ..Default::default() });
    requests.send(DiscoveryRequest { node, ..answer(type_url, names, "", None) }).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    (requests, responses.into_inner())
}

/// What a SotW client says next.
fn answer(
    type_url: &str,
    names: &[&str],
    nonce: &str,
    error_detail: Option<rpc::Status>,
) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.into(),
        error_detail,
        ..Default::default()
    }
}

async fn eventually(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, waiting).await.expect("it did not come to hold");
}

/// A SotW stream that begins with a request as it is.
async fn sotw(
    running: &Running,
    first: DiscoveryRequest,
) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    (requests, responses.into_inner())
}

/// The same in delta.
async fn delta(
    running: &Running,
    first: DeltaDiscoveryRequest,
) -> (mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    (requests, responses.into_inner())
}

/// What comes next on a stream that goes on.
async fn next<T>(responses: &mut Streaming<T>) -> T {
    tokio::time::timeout(WAIT, responses.message()).await.unwrap().unwrap().expect("the stream goes on")
}
