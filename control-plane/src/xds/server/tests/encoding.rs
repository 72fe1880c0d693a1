//! What a client says of compression, over raw HTTP/2. Source: gRPC's `compression.md`.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

use super::*;

/// One message, framed with this flag for compression.
fn framed(flag: u8) -> Bytes {
    let message = DeltaDiscoveryRequest {
        type_url: EDS.into(),
        resource_names_subscribe: vec!["e".into()],
        ..Default::default()
    }
    .encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(message.len() as u32);
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// What a call is answered: its headers, and if it goes further, the trailers, or None for a first message.
async fn answered(running: &Running, encoding: Option<&str>, flag: u8) -> (HeaderMap, Option<HeaderMap>) {
    let tcp = TcpStream::connect(running.address).await.unwrap();
    let (mut client, connection) = client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::post(format!(
        "http://{}/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        running.address
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let (response, mut requests) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // A call that is refused by its headers may be over by now.
    let _ = requests.send_data(framed(flag), false);
    let (head, mut body) = tokio::time::timeout(WAIT, response).await.unwrap().unwrap().into_parts();
    let trailers = match tokio::time::timeout(WAIT, body.data()).await.unwrap() {
        Some(_) => None,
        None => body.trailers().await.unwrap(),
    };
    connection.abort();
    (head.headers, trailers)
}

#[tokio::test]
async fn an_encoding_that_is_not_supported_is_answered_unimplemented_with_those_that_are() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    for encoding in ["gzip", "zstd", "no-such", "identity, gzip"] {
        for flag in [0, 1] {
            let (headers, _) = answered(&running, Some(encoding), flag).await;
            assert_eq!(headers["grpc-status"], (Code::Unimplemented as i32).to_string(), "{encoding}");
            assert_eq!(headers["grpc-accept-encoding"], "identity");
            assert!(headers["grpc-message"].to_str().unwrap().contains("grpc-encoding"));
        }
    }
    assert_eq!(running.server.subscribers().list(), []);
}

#[tokio::test]
async fn a_message_that_says_it_is_compressed_without_an_encoding_is_an_internal_error() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    for encoding in [None, Some("identity")] {
        let (_, trailers) = answered(&running, encoding, 1).await;
        let trailers = trailers.expect("nothing is served");
        assert_eq!(trailers["grpc-status"], (Code::Internal as i32).to_string(), "{trailers:?}");
    }
}

#[tokio::test]
async fn messages_that_are_not_compressed_are_served_whether_or_not_it_is_said() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    for encoding in [None, Some("identity")] {
        let (headers, trailers) = answered(&running, encoding, 0).await;
        assert!(!headers.contains_key("grpc-status") && trailers.is_none(), "{trailers:?}");
    }
}
