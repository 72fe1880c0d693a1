//! Applications behind the proxy: HTTP/1.1 and HTTP/2 servers that say what they saw.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpSocket};

/// An application. It is gone when dropped.
pub struct Backend {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    /// Answers with its name and what it saw. Paths do what they say: `/status/503`, `/never`, `/trailers`, `/204`, `/stream`.
    pub async fn start(name: &'static str) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), name).await
    }

    pub async fn on(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let task = tokio::spawn(async move {
            // Connections end with the listener.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let counter = counter.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        async move { Ok::<_, Infallible>(answer(name, request).await) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, requests, task }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address on which nobody listens, and nobody else will while this lives.
pub struct Nobody {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Nobody {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}

async fn answer(name: &'static str, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let path = request.uri().path().to_owned();
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(ToString::to_string);
    let mut seen: serde_json::Map<String, serde_json::Value> =
        parts.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap_or("?").into())).collect();
    if let Some(authority) = authority {
        seen.insert("host".to_owned(), authority.into());
    }
    if path == "/never" {
        std::future::pending::<()>().await;
    }
    let collected = body.collect().await;
    let (length, trailers) = match collected {
        Ok(body) => {
            let trailers = body.trailers().is_some();
            (body.to_bytes().len(), trailers)
        }
        Err(_) => (0, false),
    };
    let text = serde_json::json!({
        "backend": name,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(ToString::to_string),
        "version": format!("{:?}", parts.version),
        "headers": seen,
        "body_bytes": length,
        "trailers": trailers,
    })
    .to_string();
    let status = path.strip_prefix("/status/").and_then(|s| s.parse().ok()).unwrap_or(200);
    let mut response = match path.as_str() {
        "/trailers" => {
            let trailers =
                HeaderMap::from_iter([("x-checksum".parse().unwrap(), HeaderValue::from_static("42"))]);
            let frames = [Ok(Frame::data(Bytes::from(text))), Ok(Frame::trailers(trailers))];
            let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed());
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
            response
        }
        "/204" | "/status/204" | "/status/304" => Response::new(Full::default().boxed()),
        _ => Response::new(Full::from(text).boxed()),
    };
    *response.status_mut() = if path == "/204" { 204 } else { status }.try_into().unwrap();
    response.headers_mut().insert("x-backend", HeaderValue::from_static(name));
    response.headers_mut().insert("connection", HeaderValue::from_static("keep-alive, x-private"));
    response.headers_mut().insert("x-private", HeaderValue::from_static("1"));
    if parts.version == http::Version::HTTP_2 {
        response.headers_mut().remove("connection");
    }
    response
}
