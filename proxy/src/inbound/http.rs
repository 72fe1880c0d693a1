//! HTTP on a client's connection.

use std::{
    convert::Infallible,
    future::pending,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::watched::Watched;
use crate::{
    config::HttpManager,
    forward::{Client, HttpChain, ResponseBody, handle},
    io::Io,
    limits,
    outbound::{BoxError, on_behalf},
};

/// What may be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
    Either,
}

/// Ends when a chain that is to finish has had its time.
pub(super) async fn overtime(drain: &CancellationToken) {
    drain.cancelled().await;
    tokio::time::sleep(limits::LISTENER_DRAIN).await;
}

struct Connection {
    chain: Arc<HttpChain>,
    client: Client,
    /// Requests that are being answered.
    active: Arc<AtomicUsize>,
    /// Requests so far.
    seen: AtomicUsize,
    /// Requests that were given up before there was an answer, soon after they came.
    early_resets: AtomicU64,
    /// The number of requests is used up.
    enough: Notify,
    /// The client only resets requests.
    abused: Notify,
}

/// One request, from its head to the end of its answer.
struct Serving {
    connection: Arc<Connection>,
    /// Until there is an answer.
    since: Option<Instant>,
}

impl Serving {
    fn begin(connection: &Arc<Connection>) -> Self {
        connection.active.fetch_add(1, Ordering::Relaxed);
        let seen = connection.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = connection.chain.manager.times.requests;
        let crowded = connection.chain.shared.overload.closes();
        if crowded || limit.is_some_and(|limit| seen >= limit as usize) {
            connection.enough.notify_one();
        }
        Self { connection: connection.clone(), since: Some(Instant::now()) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.fetch_sub(1, Ordering::Relaxed);
        if self.since.is_some_and(|since| since.elapsed() < limits::EARLY_RESET) {
            let resets = connection.early_resets.fetch_add(1, Ordering::Relaxed) + 1;
            if is_abuse(resets, connection.seen.load(Ordering::Relaxed) as u64) {
                connection.abused.notify_one();
            }
        }
    }
}

/// Rapid reset (CVE-2023-44487): many requests, most of which were taken back at once.
fn is_abuse(early_resets: u64, requests: u64) -> bool {
    early_resets >= limits::EARLY_RESETS && early_resets * 2 > requests
}

/// An answer's body, which ends its request by being dropped.
struct Served {
    body: ResponseBody,
    _serving: Serving,
}

impl Body for Served {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(super) async fn serve(
    io: Io,
    chain: Arc<HttpChain>,
    client: Client,
    version: Version,
    drain: &CancellationToken,
) {
    let builder = builder(&chain.manager, version);
    let idle = chain.manager.idle_timeout;
    let longest = chain.manager.times.connection;
    let address = client.connection.remote;
    let active = Arc::new(AtomicUsize::new(0));
    let io = TokioIo::new(Watched::new(io, version != Version::Http2, &chain.manager.times, active.clone()));
    let state = Arc::new(Connection {
        chain,
        client,
        active,
        seen: AtomicUsize::new(0),
        early_resets: AtomicU64::new(0),
        enough: Notify::new(),
        abused: Notify::new(),
    });
    let (tunnels, mut new_tunnels) = mpsc::unbounded_channel();
    let mut open_tunnels = JoinSet::new();
    let service = {
        let state = state.clone();
        service_fn(move |request| {
            let (state, tunnels) = (state.clone(), tunnels.clone());
            async move {
                let mut serving = Serving::begin(&state);
                let answer = handle(&state.chain, &state.client, request, &tunnels);
                let response = on_behalf(state.client.connection.behalf, answer).await;
                serving.since = None;
                Ok::<_, Infallible>(response.map(|body| Served { body, _serving: serving }))
            }
        })
    };
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
    let mut idleness = Idleness { last: Instant::now(), seen: 0 };
    let mut look = pin!(tokio::time::sleep(idle));
    let mut old = pin!(async move {
        match longest {
            Some(longest) => tokio::time::sleep(longest).await,
            None => pending().await,
        }
    });
    let mut finishing = false;
    loop {
        let finish = tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "client connection ended");
                }
                break;
            }
            Some(tunnel) = new_tunnels.recv() => {
                open_tunnels.spawn(tunnel);
                false
            }
            () = state.abused.notified() => {
                tracing::info!(%address, "connection is closed: its requests are only reset");
                return;
            }
            () = drain.cancelled(), if !finishing => true,
            () = state.enough.notified(), if !finishing => true,
            () = old.as_mut(), if !finishing => true,
            () = look.as_mut(), if !finishing => match idleness.look(&state, idle) {
                None => true,
                Some(again) => {
                    look.as_mut().reset(tokio::time::Instant::now() + again);
                    false
                }
            },
        };
        if finish {
            finishing = true;
            connection.as_mut().graceful_shutdown();
        }
    }
    // What has become of the connection, if that is no longer HTTP.
    while let Ok(tunnel) = new_tunnels.try_recv() {
        open_tunnels.spawn(tunnel);
    }
    while open_tunnels.join_next().await.is_some() {}
}

struct Idleness {
    last: Instant,
    seen: usize,
}

impl Idleness {
    /// When to look again; `None` when nothing has happened for long enough.
    fn look(&mut self, state: &Connection, idle: Duration) -> Option<Duration> {
        let seen = state.seen.load(Ordering::Relaxed);
        if state.active.load(Ordering::Relaxed) > 0 || seen != self.seen {
            self.seen = seen;
            self.last = Instant::now();
            return Some(idle);
        }
        let rest = idle.saturating_sub(self.last.elapsed());
        (!rest.is_zero()).then_some(rest)
    }
}

fn builder(manager: &HttpManager, version: Version) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Also the time between requests: the library makes no difference.
        .header_read_timeout(manager.idle_timeout)
        .max_headers(manager.max_headers_count as usize)
        .max_buf_size(manager.max_request_headers_bytes.max(8192) as usize)
        .half_close(false);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(manager.h2.max_concurrent_streams)
        .initial_stream_window_size(manager.h2.stream_window)
        .initial_connection_window_size(manager.h2.connection_window)
        .max_header_list_size(manager.max_request_headers_bytes)
        .keep_alive_interval(manager.h2.ping_interval)
        .keep_alive_timeout(manager.h2.ping_timeout);
    if manager.h2.allow_connect {
        http2.enable_connect_protocol();
    }
    match version {
        Version::Http1 => builder.http1_only(),
        Version::Http2 => builder.http2_only(),
        Version::Either => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_abuse_when_they_are_many_and_most() {
        assert!(!is_abuse(499, 499));
        assert!(is_abuse(500, 500) && is_abuse(500, 999));
        assert!(!is_abuse(500, 1000));
    }
}
