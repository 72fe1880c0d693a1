//! The metrics' own door: HTTP/1.1, plain, one path, nothing that can be changed and nothing secret. Off unless asked
//! for, because it knows nobody, and on this machine only unless that is said in so many words.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, header, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Connections at once; further ones wait.
const MAX_CONNECTIONS: usize = 16;
/// Longest time for a request's head, and for all requests of a connection.
const HEAD: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(300);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// After an accept error (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Of OpenMetrics 1.0.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether metrics may be served in clear at an address: names of workloads, clusters and peers are in them, so that who
/// wants others to reach them says so. `plain` is that word.
///
/// # Errors
/// One sentence that names the flags.
pub fn check_address(at: SocketAddr, plain: bool) -> Result<(), String> {
    if plain || at.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "--metrics {at} is no loopback address, and metrics are plain HTTP: whoever reaches it can read them; \
         use 127.0.0.1, or add --metrics-plain if only a network that you trust reaches it"
    ))
}

/// Serves what the collector tells, until `stop`.
pub async fn serve(listener: TcpListener, collector: Box<dyn Collector>, stop: CancellationToken) {
    let mut registry = Registry::default();
    registry.register_collector(collector);
    // One scrape at a time: each looks at every stream.
    let registry = Arc::new(Mutex::new(registry));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Some((slot, Ok((stream, _)))) => {
                let (registry, stop) = (registry.clone(), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::time::timeout(CONNECTION, talk(stream, registry)) => {}
                        () = stop.cancelled() => {}
                    }
                    drop(slot);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
            // The semaphore is never closed.
            None => return,
        }
    }
}

async fn talk(stream: TcpStream, registry: Arc<Mutex<Registry>>) {
    let answering = service_fn(|request| answer(request, registry.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answering);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

async fn answer(
    request: Request<Incoming>,
    registry: Arc<Mutex<Registry>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: &'static str| {
        respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "there is only /metrics\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    let registry = registry.lock_owned().await;
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    Ok(match text.await {
        Ok(Ok(text)) => respond(StatusCode::OK, CONTENT_TYPE, text.into()),
        _ => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be gathered\n"),
    })
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_served_in_clear_unless_it_is_said() {
        for (at, fine) in [
            ("127.0.0.1:9464", true),
            ("127.8.0.1:9464", true),
            ("[::1]:9464", true),
            ("[::ffff:127.0.0.1]:9464", true),
            ("0.0.0.0:9464", false),
            ("[::]:9464", false),
            ("192.0.2.1:9464", false),
            ("[::ffff:192.0.2.1]:9464", false),
        ] {
            let at: SocketAddr = at.parse().expect("an address");
            assert_eq!(check_address(at, false).is_ok(), fine, "{at}");
            assert!(check_address(at, true).is_ok());
        }
    }
}
