//! HTTP on a client's connection.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio_util::sync::CancellationToken;

use super::framing::Framed;
use crate::{
    config::HttpManager,
    forward::{Client, HttpChain, handle},
    io::Io,
    limits,
    outbound::on_behalf,
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
    requests: AtomicUsize,
    /// Requests so far: tells whether anything has happened since the last look.
    seen: AtomicUsize,
}

struct Serving<'a>(&'a AtomicUsize);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    let address = client.connection.remote;
    let state =
        Arc::new(Connection { chain, client, requests: AtomicUsize::new(0), seen: AtomicUsize::new(0) });
    let service = {
        let state = state.clone();
        service_fn(move |request| {
            let state = state.clone();
            async move {
                state.requests.fetch_add(1, Ordering::Relaxed);
                state.seen.fetch_add(1, Ordering::Relaxed);
                let _serving = Serving(&state.requests);
                let answer = handle(&state.chain, &state.client, request);
                Ok::<_, Infallible>(on_behalf(state.client.connection.behalf, answer).await)
            }
        })
    };
    let io = TokioIo::new(Framed::new(io, version != Version::Http2));
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut idleness = Idleness { last: Instant::now(), seen: 0 };
    let mut look = pin!(tokio::time::sleep(idle));
    let mut finishing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "client connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = look.as_mut(), if !finishing => match idleness.look(&state, idle) {
                None => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Some(again) => look.as_mut().reset(tokio::time::Instant::now() + again),
            },
        }
    }
}

struct Idleness {
    last: Instant,
    seen: usize,
}

impl Idleness {
    /// When to look again; `None` when nothing has happened for long enough.
    fn look(&mut self, state: &Connection, idle: Duration) -> Option<Duration> {
        let seen = state.seen.load(Ordering::Relaxed);
        if state.requests.load(Ordering::Relaxed) > 0 || seen != self.seen {
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
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(manager.h2.max_concurrent_streams)
        .initial_stream_window_size(manager.h2.stream_window)
        .initial_connection_window_size(manager.h2.connection_window)
        .max_header_list_size(manager.max_request_headers_bytes)
        .keep_alive_interval(manager.h2.ping_interval)
        .keep_alive_timeout(manager.h2.ping_timeout);
    match version {
        Version::Http1 => builder.http1_only(),
        Version::Http2 => builder.http2_only(),
        Version::Either => builder,
    }
}
