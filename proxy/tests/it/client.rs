//! Clients of the proxy.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// What the application saw.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?} {:?}", self.status, self.text()))
    }

    pub fn backend(&self) -> &str {
        self.headers.get("x-backend").map_or("", |v| v.to_str().unwrap())
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "pay.shop").body(Full::default()).unwrap()
}

/// Sends a request on a connection of its own.
pub async fn send(at: SocketAddr, version: Version, request: Request<Full<Bytes>>) -> Answer {
    let stream = TokioIo::new(TcpStream::connect(at).await.unwrap());
    let response = if version == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = request.into_parts();
        let host = parts.headers.remove("host").unwrap();
        parts.uri = format!("http://{}{}", host.to_str().unwrap(), parts.uri).parse().unwrap();
        sender.send_request(Request::from_parts(parts, body)).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers }
}

pub async fn get1(at: SocketAddr, path: &str) -> Answer {
    send(at, Version::HTTP_11, get(path)).await
}

/// Sends bytes and reads until the other side closes.
pub async fn raw(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![];
    // A reset after the answer is as good as a close.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of the answer to a request whose target goes out as it is written.
pub async fn raw_status(at: SocketAddr, target: &str) -> u16 {
    let request = format!("GET {target} HTTP/1.1\r\nhost: pay.shop\r\nconnection: close\r\n\r\n");
    let answer = raw(at, request.as_bytes()).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("{target}: {answer:?}"))
}
