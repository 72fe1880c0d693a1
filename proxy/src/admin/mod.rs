//! The local admin endpoint: `/ready`, `/stats/prometheus`, `/config_dump`, `/clusters`.
//!
//! It only listens on the loopback interface, only answers GET and HEAD, changes nothing, and shows no key.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::{shared::Shared, subscribe::Engine};

/// Connections at a time.
const CONNECTIONS: usize = 32;
/// For a request's head, and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pages are made of.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The configuration.
    pub engine: Arc<Engine>,
    /// Clusters and counters.
    pub shared: Arc<Shared>,
    /// Whether traffic can be sent here.
    pub ready: watch::Receiver<bool>,
}

/// Listens.
///
/// # Errors
/// The address is no loopback address, or is taken.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the admin endpoint only listens on a loopback address",
        ));
    }
    TcpListener::bind(address).await
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tokio::spawn(async move {
                    connection(stream, admin).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "admin endpoint cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, admin: Admin) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = admin.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

impl Admin {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET: nothing can be changed here\n".to_owned(),
            );
        }
        match path {
            "/ready" => self.ready(),
            "/stats/prometheus" | "/metrics" => match self.shared.stats.prometheus() {
                Ok(page) => text(StatusCode::OK, page),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/config_dump" => json(&self.engine.dump()),
            "/clusters" => {
                let clusters: Vec<_> = self.shared.clusters().iter().map(|c| c.describe()).collect();
                json(&serde_json::json!({ "clusters": clusters }))
            }
            "/" => text(StatusCode::OK, "/ready\n/stats/prometheus\n/config_dump\n/clusters\n".to_owned()),
            _ => text(StatusCode::NOT_FOUND, "see / for what there is\n".to_owned()),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if *self.ready.borrow() {
            return text(StatusCode::OK, "LIVE\n".to_owned());
        }
        let mut waiting = self.engine.warming().join("\n");
        if waiting.is_empty() {
            waiting = "no configuration yet".to_owned();
        }
        text(StatusCode::SERVICE_UNAVAILABLE, format!("PRE_INITIALIZING\n{waiting}\n"))
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
