//! The ports, by HTTP: one listener each, as services come and go.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use super::{Health, answer};
use crate::engine::Engine;

/// Connections at once, of all ports; further ones are closed.
const MAX_CONNECTIONS: usize = 256;
/// Longest time for a request's head, and for a connection.
const HEAD: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Between attempts to listen where somebody else does, and after an accept error.
const RETRY: Duration = Duration::from_secs(1);
/// As kube-proxy has it, for load balancers that go by it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is said now.
type Shared = Arc<Mutex<BTreeMap<u16, Health>>>;

/// Listens, and says what is so, for ever. Stop it by dropping the future.
pub async fn keep_for_ever(engine: Engine) {
    let shared = Shared::default();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut listening: BTreeMap<u16, Port> = BTreeMap::new();
    let mut changes = engine.changes();
    loop {
        changes.borrow_and_update();
        let told = engine.health();
        listening.retain(|port, _| told.contains_key(port));
        for port in told.keys() {
            let served = || Port(tokio::spawn(serve(*port, engine.clone(), shared.clone(), slots.clone())));
            listening.entry(*port).or_insert_with(served);
        }
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = told;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Is not served any more when dropped.
struct Port(JoinHandle<()>);

impl Drop for Port {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(port: u16, engine: Engine, shared: Shared, slots: Arc<Semaphore>) {
    let listener = listen(port).await;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Too many: whoever asks asks again.
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let (engine, shared) = (engine.clone(), shared.clone());
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION, talk(stream, port, engine, shared)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "a question for a service's health could not be taken");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// At every address of the node, as node ports are.
async fn listen(port: u16) -> TcpListener {
    let mut told = false;
    loop {
        match bind(port).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                tracing::error!(port, %error, "healthCheckNodePort is not served; tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // A node without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

async fn talk(stream: TcpStream, port: u16, engine: Engine, shared: Shared) {
    let answering = service_fn(|_| {
        let health = shared.lock().unwrap_or_else(PoisonError::into_inner).get(&port).cloned();
        let response = respond(health.as_ref(), !engine.is_behind());
        async { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answering);
    if let Err(error) = connection.await {
        tracing::debug!(port, %error, "a question for a service's health ended");
    }
}

/// Whatever is asked for. None: the service has gone meanwhile.
fn respond(health: Option<&Health>, is_enforced: bool) -> Response<Full<Bytes>> {
    let (status, body) = health.map_or((503, String::new()), |health| answer(health, is_enforced));
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(health.map_or(0, |health| health.endpoints)));
    response
}
