//! Callers without a certificate who send and send: they are answered by their headers, and cost next to nothing.

use std::{cell::Cell, future::poll_fn};

use bytes::{BufMut, Bytes, BytesMut};
use control_plane::doors::{MAX_NEWCOMER_STREAMS, MAX_STREAMS_PER_CONNECTION, NEWCOMER_STREAM_WINDOW};
use futures::{StreamExt, stream::FuturesUnordered};
use h2::client::{Connection, SendRequest};
use mesh_tls::{ALPN_H2, PeerPolicy, SharedIdentity, client_config};
use tokio::net::TcpStream;
use tonic::Code;
use xds_proto::isthmus::admin::v1::{StatusRequest, admin_client::AdminClient};

use crate::common::{Cluster, SOON};

/// What each message says that it will have.
const PROMISED: usize = 16 << 20;

type Raw = (SendRequest<Bytes>, Connection<tokio_rustls::client::TlsStream<TcpStream>, Bytes>);

async fn raw(cluster: &Cluster, identity: Option<SharedIdentity>) -> Raw {
    let policy = PeerPolicy::Replicas(cluster.trust_domain());
    let tls = client_config(identity, cluster.bundles(), policy, &[ALPN_H2]).unwrap();
    let tcp = TcpStream::connect(cluster.running.door).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("replica.isthmus").unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.unwrap();
    h2::client::handshake(stream).await.unwrap()
}

/// Sends as much of a message as is taken, and returns how much that was, and what it was answered.
async fn unfinished(client: SendRequest<Bytes>, path: &str, promised: usize) -> (usize, String, String) {
    let mut client = client.ready().await.unwrap();
    let request = http::Request::post(format!("https://replica.isthmus{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(promised as u32);
    let sent = Cell::new(head.len());
    body.send_data(head.freeze(), false).unwrap();
    let sending = async {
        // All of it but the last byte.
        while sent.get() < promised {
            body.reserve_capacity((promised - sent.get()).min(16 << 10));
            let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { break };
            if body.send_data(Bytes::from(vec![0; room]), false).is_err() {
                break;
            }
            sent.set(sent.get() + room);
        }
        std::future::pending::<()>().await
    };
    let response = tokio::select! {
        response = response => response.unwrap(),
        () = sending => unreachable!(),
    };
    let header = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (sent.get(), header("grpc-status"), header("grpc-message"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_of_nobody_are_refused_by_their_headers_and_never_read() {
    let mut cluster = Cluster::start("west").await;
    let (client, connection) = raw(&cluster, None).await;
    let connection = tokio::spawn(connection);
    // From its answer on, the client knows how many streams there may be.
    let (_, status, message) = unfinished(client.clone(), "/isthmus.admin.v1.Admin/Apply", PROMISED).await;
    assert_eq!(status, (Code::Unauthenticated as i32).to_string(), "{message}");
    let paths = ["/isthmus.admin.v1.Admin/Apply"; 60].into_iter().chain(
        [
            "/isthmus.raft.v1.Raft/AppendEntries",
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats",
            "/isthmus.bootstrap.v1.Endpoints/ReportFlows",
            "/isthmus.federation.v1.Federation/ConfirmTrust",
        ]
        .into_iter()
        .cycle()
        .take(20),
    );
    let mut calls: FuturesUnordered<_> =
        paths.map(|path| unfinished(client.clone(), path, PROMISED)).collect();
    let mut most = 0;
    let answered = async {
        while let Some((sent, status, message)) = calls.next().await {
            assert_eq!(status, (Code::Unauthenticated as i32).to_string(), "{message}");
            most = most.max(sent);
        }
    };
    tokio::time::timeout(SOON, answered).await.expect("every call is answered");
    // Its window was never opened again: nobody has read.
    assert!(most <= NEWCOMER_STREAM_WINDOW as usize, "{most} bytes were taken");
    drop((calls, client));
    let _ = tokio::time::timeout(SOON, connection).await.unwrap();

    // A certificate without the right is answered as soon.
    let node = cluster.node("n1").await;
    let (client, connection) = raw(&cluster, Some(node.identity)).await;
    tokio::spawn(connection);
    let refused = unfinished(client, "/isthmus.admin.v1.Admin/Apply", PROMISED);
    let (_, status, message) = tokio::time::timeout(SOON, refused).await.unwrap();
    assert_eq!(status, (Code::PermissionDenied as i32).to_string(), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_to_everybody_is_small_and_little_of_it_is_read_at_once() {
    let mut cluster = Cluster::start_with("west", &["--limit", "newcomer-calls=8"]).await;
    const OPEN: &str = "/isthmus.bootstrap.v1.Bootstrap/RegisterNode";
    let node = cluster.node("n1").await;
    let (client, connection) = raw(&cluster, None).await;
    tokio::spawn(connection);
    let (_, status, message) = unfinished(client.clone(), OPEN, PROMISED).await;
    assert_eq!(status, (Code::OutOfRange as i32).to_string(), "{message}");
    // A fourth of the eight places is one address's.
    let mut calls: FuturesUnordered<_> = (0..3).map(|_| unfinished(client.clone(), OPEN, 60 << 10)).collect();
    let (_, status, message) = tokio::time::timeout(SOON, calls.next()).await.unwrap().unwrap();
    assert_eq!(status, (Code::ResourceExhausted as i32).to_string(), "{message}");
    assert!(message.contains("newcomer-calls"), "{message}");

    // Who shows a certificate may have more at once.
    for (identity, streams) in
        [(None, MAX_NEWCOMER_STREAMS), (Some(node.identity), MAX_STREAMS_PER_CONNECTION)]
    {
        let (client, connection) = raw(&cluster, identity).await;
        let mut connection = Box::pin(connection);
        let answered = unfinished(client, "/isthmus.admin.v1.Admin/Apply", PROMISED);
        tokio::select! {
            _ = answered => {}
            ended = &mut connection => panic!("{ended:?}"),
        }
        assert_eq!(connection.max_concurrent_send_streams(), streams as usize);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_certificate_are_limited_by_address_and_those_with_one_are_served_on() {
    let mut cluster = Cluster::start_with("west", &["--limit", "newcomer-connections-per-address=2"]).await;
    let node = cluster.node("n1").await;
    let asked = async |cluster: &Cluster| {
        let channel = cluster.connect(None).await.ok()?;
        let refused = AdminClient::new(channel.clone()).status(StatusRequest {}).await.unwrap_err();
        (refused.code() == Code::Unauthenticated).then_some(channel)
    };
    // The connection by which the node has registered may be there for a moment yet.
    let both = async {
        let mut held = Vec::new();
        while held.len() < 2 {
            held.extend(asked(&cluster).await);
        }
        held
    };
    let held = tokio::time::timeout(SOON, both).await.unwrap();
    assert!(asked(&cluster).await.is_none(), "the third is closed");
    let gate = &cluster.running.app.gate;
    assert!(gate.limited().any(|(name, count)| name == "newcomer-connections-per-address" && count > 0));
    assert_eq!(gate.connected().1, 2);
    let channel = cluster.connect(Some(node.identity)).await.unwrap();
    let status = AdminClient::new(channel).status(StatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "it is heard");
    drop(held);
    let room = async { while asked(&cluster).await.is_none() {} };
    tokio::time::timeout(SOON, room).await.unwrap();
}
