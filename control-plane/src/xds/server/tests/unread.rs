//! A client that doesn't even read its socket, over raw HTTP/2.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use tokio::net::TcpStream;
use xds_proto::{
    Message,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
};

use super::*;
use crate::xds::kinds::ENDPOINT as EDS;

const REVISIONS: u64 = 60;

/// One message, as gRPC frames it.
fn framed(request: &DeltaDiscoveryRequest) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(request.encoded_len() as u32);
    request.encode(&mut frame).unwrap();
    frame.freeze()
}

/// The next message.
async fn read(body: &mut RecvStream, left: &mut BytesMut) -> DeltaDiscoveryResponse {
    loop {
        if left.len() >= 5 {
            let length = u32::from_be_bytes(left[1..5].try_into().unwrap()) as usize;
            if left.len() >= 5 + length {
                left.advance(5);
                return DeltaDiscoveryResponse::decode(left.split_to(length)).unwrap();
            }
        }
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        left.extend_from_slice(&data);
    }
}

fn answer(requests: &mut SendStream<Bytes>, nonce: &str) {
    let ack =
        DeltaDiscoveryRequest { type_url: EDS.into(), response_nonce: nonce.into(), ..Default::default() };
    requests.send_data(framed(&ack), false).unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_its_socket_costs_one_response_delays_nobody_and_then_gets_the_newest_state()
 {
    let big = "x".repeat(1 << 20);
    let of = |revision: u64| format!("{revision}{big}");
    let running = Running::start(TestViews::new(1, &[(EDS, "e", &of(1))])).await;

    let tcp = TcpStream::connect(running.address).await.unwrap();
    let (mut client, connection) = client::handshake(tcp).await.unwrap();
    let mut connection = Box::pin(connection);
    let request = http::Request::post(format!(
        "http://{}/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        running.address
    ));
    let request =
        request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
    let (response, mut requests) = client.send_request(request, false).unwrap();
    let first = DeltaDiscoveryRequest {
        type_url: EDS.into(),
        resource_names_subscribe: vec!["e".into()],
        node: Some(Node { id: "unread".into(), ..Default::default() }),
        ..Default::default()
    };
    requests.send_data(framed(&first), false).unwrap();
    tokio::select! {
        ended = &mut connection => panic!("{ended:?}"),
        _ = running.until(|list| list.len() == 1 && list[0].sent_revision == 1) => {}
    }

    // From here on nobody polls the connection.
    let mut fast = running.subscribe("fast", vec![xds_client::Subscription::only(EDS, ["e"])], always);
    fast.next().await;
    for revision in 2..=REVISIONS {
        running.views.publish(revision, &[(EDS, "e", &of(revision))]);
        assert!(fast.next().await.starts_with(&format!("+e={revision}x")));
    }
    let unread = running.until(|list| list.len() == 2).await.remove(0);
    assert_eq!((unread.sent_revision, unread.acked_revision), (1, 0));
    running.until(|list| list.iter().any(|stream| stream.acked_revision == REVISIONS)).await;
    let sums = running.server.subscribers().sums(std::time::Instant::now());
    let waiting: Vec<_> =
        sums.values().map(|sum| (sum.streams, sum.queued, sum.types_queued, sum.in_flight)).collect();
    assert_eq!(waiting, [(2, 1, 1, 1)], "however many revisions there were, one response is queued");

    let reading = async {
        let mut body = response.await.unwrap().into_body();
        let mut left = BytesMut::new();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let response = read(&mut body, &mut left).await;
            seen.push(response.system_version_info.clone());
            answer(&mut requests, &response.nonce);
        }
        seen
    };
    let seen = tokio::select! {
        ended = &mut connection => panic!("{ended:?}"),
        seen = reading => seen,
    };
    assert_eq!(seen, ["1".to_owned(), REVISIONS.to_string()]);
}
