//! Clients that follow: our own over TCP and a unix socket, a slow one, and who waits for them.

use mesh_model::identity::{SpiffeId, TrustDomain};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use xds_client::{Names, Transport};

use super::*;
use crate::xds::subscribers::LagReason;

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
