//! The server over real connections: a unix socket, TCP, our own client, and raw streams.

use std::{sync::Mutex, time::Duration};

use mesh_model::identity::{SpiffeId, TrustDomain};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::{Code, Status, transport::Channel};
use xds_client::{Config, Names, SubscribeCommand, Subscription, Transport, Update};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
                aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
            },
            endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient,
        },
    },
    google::{protobuf::Any, rpc},
};

use super::*;
use crate::xds::{
    Client, Encoded, Lagging, ResourceSet, Subscriber,
    kinds::{CLUSTER as CDS, ENDPOINT as EDS, SECRET, SERVICE},
    subscribers::LagReason,
};

const WAIT: Duration = Duration::from_secs(20);

/// The same view for everybody; node ids that begin with `intruder` are not let in.
pub(super) struct TestViews {
    set: Mutex<Arc<ResourceSet>>,
    revision: watch::Sender<u64>,
}

impl TestViews {
    pub(super) fn new(revision: u64, resources: &[(&str, &str, &str)]) -> Arc<Self> {
        let views = Self { set: Mutex::default(), revision: watch::Sender::new(0) };
        views.publish(revision, resources);
        Arc::new(views)
    }

    pub(super) fn publish(&self, revision: u64, resources: &[(&str, &str, &str)]) {
        let mut set = ResourceSet::new(revision);
        for (type_url, name, contents) in resources {
            let any = Any { type_url: (*type_url).into(), value: contents.as_bytes().to_vec() };
            set.insert(Encoded::from_any(*name, any));
        }
        let mut current = self.set.lock().unwrap();
        set.share_with(&current);
        *current = Arc::new(set);
        drop(current);
        self.revision.send_replace(revision);
    }
}

impl Views for TestViews {
    fn resources(&self, _: &Client) -> Arc<ResourceSet> {
        self.set.lock().unwrap().clone()
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

pub(super) struct Running {
    pub(super) views: Arc<TestViews>,
    pub(super) server: XdsServer<TestViews>,
    pub(super) address: std::net::SocketAddr,
    /// Where our own clients connect to.
    route: Arc<Mutex<std::net::SocketAddr>>,
}

impl Running {
    pub(super) async fn start(views: Arc<TestViews>) -> Self {
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

    pub(super) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// Subscribes with our own client; what it accepts and refuses is decided by `accept`.
    pub(super) fn subscribe(
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

    pub(super) async fn acked(&self, revision: u64) -> Vec<Lagging> {
        self.server.subscribers().wait_acked(revision, WAIT).await
    }

    /// The registry, once it looks as expected.
    pub(super) async fn until(&self, expected: impl Fn(&[Subscriber]) -> bool) -> Vec<Subscriber> {
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

pub(super) struct Follower {
    commands: mpsc::Sender<SubscribeCommand>,
    updates: mpsc::UnboundedReceiver<Update>,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// The next update, as `+name=contents -name`.
    pub(super) async fn next(&mut self) -> String {
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

pub(super) fn always(_: &Update) -> bool {
    true
}

#[tokio::test]
async fn our_client_follows_changes_subscribes_to_more_and_is_seen_to_have_acked() {
    let running = Running::start(TestViews::new(1, &[(SERVICE, "a", "1"), (EDS, "e", "1")])).await;
    let mut follower = running.subscribe("n1", vec![Subscription::wildcard(SERVICE)], always);
    assert_eq!(follower.next().await, "+a=1");
    running.views.publish(2, &[(SERVICE, "a", "2"), (SERVICE, "b", "1"), (EDS, "e", "1")]);
    assert_eq!(follower.next().await, "+a=2 +b=1");
    let more = SubscribeCommand::Subscribe { type_url: EDS.into(), names: Names::only(["e", "ghost"]) };
    follower.commands.send(more).await.unwrap();
    assert_eq!(follower.next().await, "+e=1 -ghost");
    running.views.publish(3, &[(SERVICE, "b", "1"), (EDS, "e", "1")]);
    assert_eq!(follower.next().await, "-a");
    assert_eq!(running.acked(3).await, []);
    let list = running.server.subscribers().list();
    assert_eq!(
        (list.len(), list[0].id.as_str(), list[0].kind, list[0].acked_revision),
        (1, "agent~n1", "agent", 3)
    );
    assert_eq!(list[0].acked[SERVICE], 3);
}

#[tokio::test]
async fn a_nack_is_recorded_and_the_wait_names_the_client_without_waiting_for_the_end() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    fn picky(update: &Update) -> bool {
        update.added.iter().all(|resource| resource.resource.value != b"bad")
    }
    let mut follower = running.subscribe("n1", vec![Subscription::only(EDS, ["e"])], picky);
    follower.next().await;
    assert_eq!(running.acked(1).await, []);
    running.views.publish(2, &[(EDS, "e", "bad")]);
    assert_eq!(follower.next().await, "+e=bad");
    running.until(|list| list[0].settled_revision == 2).await;
    let lagging = running.acked(2).await;
    assert_eq!(lagging.len(), 1);
    assert_eq!(lagging[0].to_string(), "agent~n1 (refused: ClusterLoadAssignment e: not wanted)");
    let list = running.server.subscribers().list();
    assert_eq!((list[0].nacks, list[0].acked_revision, list[0].settled_revision), (1, 1, 2));

    running.views.publish(3, &[(EDS, "e", "bad"), (CDS, "unrelated", "1")]);
    running.until(|list| list[0].settled_revision == 3).await;
    assert_eq!(running.acked(3).await, [], "revision 3 does not concern it");
    running.views.publish(4, &[(EDS, "e", "2")]);
    assert_eq!(follower.next().await, "+e=2");
    assert_eq!(running.acked(4).await, []);
}

#[tokio::test]
async fn a_client_that_goes_to_another_replica_gets_only_what_changed_meanwhile() {
    let views = TestViews::new(1, &[(SERVICE, "a", "1"), (SERVICE, "b", "1"), (SERVICE, "c", "1")]);
    let running = Running::start(views).await;
    let mut follower = running.subscribe("n1", vec![Subscription::wildcard(SERVICE)], always);
    follower.next().await;
    running.acked(1).await;
    // Another replica, which has the same resources from the same state and some newer ones.
    let other = Running::start(TestViews::new(2, &[(SERVICE, "a", "1"), (SERVICE, "b", "2")])).await;
    *running.route.lock().unwrap() = other.address;
    running.server.drain();
    let mut seen = follower.next().await;
    if seen == "+b=2" {
        seen += &format!(" {}", follower.next().await);
    }
    assert_eq!(seen, "+b=2 -c");
}

#[tokio::test]
async fn a_replica_that_lags_behind_its_client_makes_it_wait_and_serves_nothing_older() {
    let running = Running::start(TestViews::new(4, &[(CDS, "a", "old")])).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let first = DiscoveryRequest { version_info: "5".into(), type_url: CDS.into(), ..Default::default() };
    requests.send(first).await.unwrap();
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    running.views.publish(5, &[(CDS, "a", "new")]);
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!((response.version_info.as_str(), &response.resources[0].value[..]), ("5", &b"new"[..]));
}

#[tokio::test]
async fn a_replica_that_does_not_catch_up_with_its_client_sends_it_away_and_serves_nothing_older() {
    let views = TestViews::new(4, &[(CDS, "a", "1")]);
    let running = Running::with(views, |options| options.catch_up = Duration::from_millis(10)).await;
    let (requests, receiver) = mpsc::channel(4);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert(REVISION_METADATA, "999".parse().unwrap());
    requests.send(DeltaDiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let mut responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
    let status = responses.message().await.expect_err("it is sent away");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("999"), "{status}");
}

#[tokio::test]
async fn a_client_that_does_not_read_delays_nobody_and_gets_the_newest_state() {
    let big = "x".repeat(400_000);
    let of = |version: u64| format!("{version}{big}");
    let views = TestViews::new(1, &[(EDS, "e", &of(1))]);
    let running = Running::start(views).await;
    let (requests, receiver) = mpsc::channel(1024);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let subscribe = |nonce: &str| DiscoveryRequest {
        type_url: EDS.into(),
        resource_names: vec!["e".into()],
        response_nonce: nonce.into(),
        node: Some(Node { id: "slow".into(), ..Default::default() }),
        ..Default::default()
    };
    requests.send(subscribe("")).await.unwrap();
    let mut slow =
        client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    running.until(|list| list.len() == 1).await;
    let mut fast = running.subscribe("fast", vec![Subscription::only(EDS, ["e"])], always);
    fast.next().await;
    for revision in 2..40 {
        running.views.publish(revision, &[(EDS, "e", &of(revision))]);
        // The slow one never reads, but ACKs what it can not have read; the fast one gets every change.
        requests.send(subscribe(&format!("1-{}", revision - 1))).await.unwrap();
        assert!(fast.next().await.starts_with(&format!("+e={revision}x")));
    }
    let mut received = 0;
    loop {
        let response = tokio::time::timeout(WAIT, slow.message()).await.unwrap().unwrap().unwrap();
        received += 1;
        requests.send(subscribe(&response.nonce)).await.unwrap();
        if response.resources[0].value.starts_with(b"39x") {
            break;
        }
    }
    assert!(received < 20, "{received} responses were kept for a client that did not read");
    assert_eq!(running.acked(39).await, []);
}

#[tokio::test]
async fn the_wait_ends_for_clients_that_leave_and_times_out_for_those_that_are_silent() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    let (requests, receiver) = mpsc::channel::<DiscoveryRequest>(4);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let subscribe = DiscoveryRequest {
        type_url: EDS.into(),
        resource_names: vec!["e".into()],
        node: Some(Node { id: "silent".into(), ..Default::default() }),
        ..Default::default()
    };
    requests.send(subscribe).await.unwrap();
    let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    running.until(|list| list.len() == 1 && list[0].sent_revision == 1).await;
    let lagging = running.server.subscribers().wait_acked(1, Duration::from_millis(20)).await;
    assert_eq!(lagging, [Lagging { id: "agent~silent".into(), reason: LagReason::Unanswered { acked: 0 } }]);
    let (lagging, ()) = tokio::join!(running.acked(1), async {
        tokio::task::yield_now().await;
        drop((requests, responses));
    });
    assert_eq!(lagging, []);
}

#[tokio::test]
async fn who_may_not_have_anything_is_told_so_and_not_listed() {
    let running = Running::start(TestViews::new(1, &[])).await;
    let status =
        end_of(&running, |request| request.node = Some(Node { id: "intruder".into(), ..Default::default() }))
            .await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "intruders may have nothing"));
    assert_eq!(running.server.subscribers().list(), []);
}

#[tokio::test]
async fn a_client_that_loses_its_right_loses_its_stream_at_that_revision() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    let mut follower = running.subscribe("leaver", vec![Subscription::only(EDS, ["e"])], always);
    assert_eq!(follower.next().await, "+e=1");
    running.views.publish(2, &[(EDS, "e", "secret")]);
    running.until(|list| list.is_empty()).await;
    assert!(follower.updates.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_beyond_its_limits_ends_with_a_sentence() {
    let views = TestViews::new(1, &[]);
    let running = Running::with(views, |options| options.limits.names = 1).await;
    let status = end_of(&running, |request| request.resource_names = vec!["a".into(), "b".into()]).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "subscribed to more than 1 names on one stream");
    let status = end_of(&running, |request| request.type_url.clear()).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "type_url is empty"));
}

#[tokio::test]
async fn an_oversized_request_ends_its_own_stream_only() {
    let views = TestViews::new(1, &[(EDS, "e", "1")]);
    let running = Running::with(views, |options| options.request_bytes = 1 << 10).await;
    let mut follower = running.subscribe("n1", vec![Subscription::only(EDS, ["e"])], always);
    follower.next().await;
    let status = end_of(&running, |request| request.resource_names = vec!["x".repeat(2 << 10)]).await;
    assert_eq!(status.code(), Code::OutOfRange);
    running.views.publish(2, &[(EDS, "e", "2")]);
    assert_eq!(follower.next().await, "+e=2");
}

#[tokio::test]
async fn a_silent_stream_is_closed() {
    let running =
        Running::with(TestViews::new(1, &[]), |o| o.first_request = Duration::from_millis(10)).await;
    let (_requests, receiver) = mpsc::channel::<DiscoveryRequest>(1);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn draining_sends_clients_elsewhere() {
    let running = Running::start(TestViews::new(1, &[])).await;
    running.server.drain();
    assert_eq!(end_of(&running, |_| {}).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn who_comes_to_a_server_that_drains_is_not_served_once_more() {
    let running = Running::start(TestViews::new(1, &[(CDS, "a", "1")])).await;
    running.server.drain();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    // Which of two ready things comes first would be a matter of luck.
    for _ in 0..20 {
        let (requests, receiver) = mpsc::channel(1);
        requests.send(DiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
        let opened = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await;
        let first = match opened {
            Ok(responses) => responses.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(first.expect_err("it is sent away").code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn a_service_of_one_type_needs_no_type_url_and_refuses_others() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1"), (SECRET, "s", "1")])).await;
    let mut client = EndpointDiscoveryServiceClient::new(running.channel().await);
    let (requests, receiver) = mpsc::channel(4);
    let request = DiscoveryRequest { resource_names: vec!["e".into()], ..Default::default() };
    requests.send(request.clone()).await.unwrap();
    let mut responses = client.stream_endpoints(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let response: DiscoveryResponse = responses.message().await.unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (EDS, 1));
    requests.send(DiscoveryRequest { type_url: SECRET.into(), ..request }).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn secrets_are_served_over_sds_on_a_unix_socket_to_our_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let views = TestViews::new(1, &[(SECRET, "default", "key")]);
    let server = XdsServer::new(views, Arc::new(Subscribers::new()), Options::new("test"));
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    tokio::spawn(
        tonic::transport::Server::builder().add_routes(server.routes()).serve_with_incoming(incoming),
    );

    let mut config =
        Config::new(xds_client::node("n1", "west"), vec![Subscription::only(SECRET, ["default"])]);
    config.transport = Transport::Sds;
    let (sender, mut updates) = mpsc::unbounded_channel();
    let (_commands, receiver) = mpsc::channel(1);
    let connect = move || {
        let path = path.clone();
        async move { mesh_tls::grpc::connect_unix(path).await }
    };
    let handler = move |update: Update| sender.send(update).map_err(|e| e.to_string());
    let task = tokio::spawn(xds_client::run(config, connect, handler, receiver));
    let update = tokio::time::timeout(WAIT, updates.recv()).await.unwrap().unwrap();
    assert_eq!(update.added[0].name, "default");
    task.abort();
}

#[test]
fn the_identity_of_the_connection_is_that_of_its_certificate() {
    let id = SpiffeId::node(&TrustDomain::parse("west.example").unwrap(), "n1");
    let addr = "127.0.0.1:9".parse().unwrap();
    let mut request = tonic::Request::new(());
    assert_eq!(peer(&request), PeerIdentity::default());
    request.extensions_mut().insert(mesh_tls::grpc::PeerInfo {
        spiffe_id: Some(id.clone()),
        registration: Some(3),
        addr,
    });
    assert_eq!(peer(&request), PeerIdentity { spiffe_id: Some(id), registration: Some(3), addr: Some(addr) });
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
pub(super) async fn raw(
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
pub(super) fn answer(
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

pub(super) async fn eventually(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, waiting).await.expect("it did not come to hold");
}
