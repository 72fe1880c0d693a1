//! Connections to one endpoint: HTTP/1.1 ones that are idle, HTTP/2 ones that are shared.
//!
//! Locks are held for a push or a pop, never across an await.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{Notify, watch};

use super::{
    Host, Lease, Permit, UpstreamBody, UpstreamCluster, behalf,
    dial::{ConnectError, ConnectFailure, chose_http2, dial},
    lease::{H1Lease, H2Lease},
};
use crate::{
    config::{Cluster, Priority},
    io::Io,
    limits,
    tls::Offer,
};

/// Which HTTP version a request is to go out with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What ALPN chooses.
    Any,
}

#[derive(Debug)]
pub(super) struct IdleH1 {
    pub(super) sender: http1::SendRequest<UpstreamBody>,
    pub(super) generation: u64,
    pub(super) since: Instant,
    /// When it was opened, and the requests that it has had.
    born: Instant,
    pub(super) requests: u32,
}

#[derive(Debug)]
struct SharedH2 {
    sender: http2::SendRequest<UpstreamBody>,
    active: Arc<AtomicUsize>,
    generation: u64,
    last_used: Instant,
    born: Instant,
    requests: u32,
}

/// How long a connection may be used, and for how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    generation: u64,
    idle: Option<Duration>,
    age: Option<Duration>,
    requests: u32,
}

impl Lifetime {
    fn of(cluster: &UpstreamCluster, host: &Host) -> Self {
        Self::new(&cluster.config, cluster.generation(host))
    }

    pub(super) fn new(config: &Cluster, generation: u64) -> Self {
        Self {
            generation,
            idle: config.idle_timeout,
            age: config.max_connection_duration,
            requests: config.max_requests_per_connection.unwrap_or(u32::MAX),
        }
    }

    /// Whether a connection may take a further request.
    fn allows(&self, generation: u64, born: Instant, requests: u32, now: Instant) -> bool {
        let young = self.age.is_none_or(|age| now.saturating_duration_since(born) < age);
        generation == self.generation && young && requests < self.requests
    }

    fn idle_for_too_long(&self, since: Instant, now: Instant) -> bool {
        self.idle.is_some_and(|idle| now.saturating_duration_since(since) > idle)
    }
}

/// The outcome of a dial that several requests wait for; `None` while it goes on.
type Outcome = watch::Receiver<Option<Result<(), ConnectError>>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<IdleH1>>,
    shared: Mutex<Vec<SharedH2>>,
    dialing: Mutex<Option<Outcome>>,
    /// Whether ALPN last chose HTTP/1.1: then requests that could share do not wait for one dial.
    speaks_http1: std::sync::atomic::AtomicBool,
    open: AtomicUsize,
    /// A connection has become idle or has been closed.
    freed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Gives back a connection that is (about to be) idle.
    pub(super) fn put(&self, connection: IdleH1) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < limits::IDLE_PER_HOST {
            idle.push(connection);
            drop(idle);
            self.freed.notify_one();
        }
    }

    /// The most recently used one: the others may then grow old and be closed.
    fn pop(&self, lifetime: Lifetime) -> Option<IdleH1> {
        let mut idle = lock(&self.idle);
        let now = Instant::now();
        while let Some(connection) = idle.pop() {
            let good = lifetime.allows(connection.generation, connection.born, connection.requests, now)
                && !lifetime.idle_for_too_long(connection.since, now);
            if good && !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// The least busy one. `full` says from how many requests on a connection is only taken if `anyway`.
    fn share(
        &self,
        lifetime: Lifetime,
        full: usize,
        anyway: bool,
    ) -> Option<(http2::SendRequest<UpstreamBody>, Arc<AtomicUsize>)> {
        let mut shared = lock(&self.shared);
        let now = Instant::now();
        // One that may take no more requests ends by itself when those on it are through.
        shared.retain(|c| !c.sender.is_closed() && lifetime.allows(c.generation, c.born, c.requests, now));
        let connection = shared.iter_mut().min_by_key(|c| c.active.load(Ordering::Acquire))?;
        if connection.active.load(Ordering::Acquire) >= full && !anyway {
            return None;
        }
        connection.active.fetch_add(1, Ordering::AcqRel);
        connection.last_used = now;
        connection.requests += 1;
        Some((connection.sender.clone(), connection.active.clone()))
    }

    pub(super) fn sweep(&self, now: Instant, config: &Cluster, generation: u64) {
        let lifetime = Lifetime::new(config, generation);
        lock(&self.idle).retain(|c| {
            lifetime.allows(c.generation, c.born, c.requests, now)
                && !c.sender.is_closed()
                && !lifetime.idle_for_too_long(c.since, now)
        });
        lock(&self.shared).retain(|c| {
            let unused =
                c.active.load(Ordering::Acquire) == 0 && lifetime.idle_for_too_long(c.last_used, now);
            lifetime.allows(c.generation, c.born, c.requests, now) && !c.sender.is_closed() && !unused
        });
    }
}

/// A connection for a request of priority DEFAULT.
///
/// # Errors
/// See [`ConnectFailure`].
pub async fn acquire(
    cluster: &Arc<UpstreamCluster>,
    host: &Arc<Host>,
    want: Want,
) -> Result<Lease, ConnectError> {
    acquire_as(cluster, host, want, Priority::Default).await
}

/// A connection for one request: an idle or shared one, or a new one.
///
/// # Errors
/// See [`ConnectFailure`].
pub async fn acquire_as(
    cluster: &Arc<UpstreamCluster>,
    host: &Arc<Host>,
    want: Want,
    priority: Priority,
) -> Result<Lease, ConnectError> {
    let host = &host.in_name_of(behalf().source);
    if let Some(lease) = existing(cluster, host, want, false).await {
        return Ok(lease);
    }
    let breaker = cluster.breaker(priority);
    let Some(_pending) = breaker.pending.try_take() else {
        cluster.stats.pending_overflow.fetch_add(1, Ordering::Relaxed);
        return Err(overflow("max_pending_requests"));
    };
    let mut counted = false;
    loop {
        // Listening before looking: what is freed in between is not missed.
        let freed = host.pool.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        if let Some(lease) = existing(cluster, host, want, false).await {
            return Ok(lease);
        }
        let own = host.pool.connections();
        let may = cluster.config.breakers.max_connections_per_host.is_none_or(|max| own < max as usize);
        let permit = match breaker.connections.try_take().filter(|_| may) {
            Some(permit) => permit,
            // As in Envoy, each endpoint may have one connection in any case.
            None if own == 0 => breaker.connections.take(),
            None => {
                if !std::mem::replace(&mut counted, true) {
                    cluster.stats.connection_overflow.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(lease) = existing(cluster, host, want, true).await {
                    return Ok(lease);
                }
                freed.await;
                continue;
            }
        };
        // Counted from now on, so that others who come meanwhile wait for it.
        let open = Open::new(cluster, host, permit);
        let alone =
            want == Want::Http1 || (want == Want::Any && host.pool.speaks_http1.load(Ordering::Acquire));
        if alone {
            return connect(cluster, host, want, open).await;
        }
        together(cluster, host, want, open).await?;
    }
}

fn overflow(limit: &str) -> ConnectError {
    ConnectError::new(ConnectFailure::Overflow, format!("circuit breaker {limit}"))
}

async fn existing(cluster: &UpstreamCluster, host: &Arc<Host>, want: Want, anyway: bool) -> Option<Lease> {
    let lifetime = Lifetime::of(cluster, host);
    if want != Want::Http1
        && let Some((sender, active)) = host.pool.share(lifetime, cluster.config.max_streams, anyway)
    {
        return Some(Lease::H2(H2Lease::new(sender, active)));
    }
    if want == Want::Http2 {
        return None;
    }
    while let Some(mut connection) = host.pool.pop(lifetime) {
        // The end of the last answer was seen here before its connection's own task got around to say that it is ready.
        let ready = connection.sender.is_ready()
            || matches!(
                tokio::time::timeout(Duration::from_millis(20), connection.sender.ready()).await,
                Ok(Ok(()))
            );
        if ready {
            return Some(Lease::H1(H1Lease::new(connection, host.clone(), true)));
        }
    }
    None
}

/// One dial for everybody who waits for this endpoint: HTTP/2 connections are shared.
async fn together(
    cluster: &Arc<UpstreamCluster>,
    host: &Arc<Host>,
    want: Want,
    open: Open,
) -> Result<(), ConnectError> {
    let mut outcome = {
        let mut dialing = lock(&host.pool.dialing);
        match &*dialing {
            // One whose task is gone without a word is no longer waited for.
            Some(outcome) if outcome.has_changed().is_ok() => outcome.clone(),
            _ => {
                let (sender, receiver) = watch::channel(None);
                *dialing = Some(receiver.clone());
                let (cluster, host) = (cluster.clone(), host.clone());
                // On a task of its own: the request that began it may be given up while others wait.
                tokio::spawn(async move {
                    let result = match connect(&cluster, &host, want, open).await {
                        Ok(Lease::H1(lease)) => {
                            host.pool.speaks_http1.store(true, Ordering::Release);
                            lease.finish();
                            Ok(())
                        }
                        Ok(Lease::H2(_)) => Ok(()),
                        Err(error) => Err(error),
                    };
                    *lock(&host.pool.dialing) = None;
                    sender.send_replace(Some(result));
                });
                receiver
            }
        }
    };
    match outcome.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Ok(())),
        Err(_) => Err(ConnectError::new(ConnectFailure::Refused, "the connection attempt was given up")),
    }
}

async fn connect(
    cluster: &Arc<UpstreamCluster>,
    host: &Arc<Host>,
    want: Want,
    open: Open,
) -> Result<Lease, ConnectError> {
    let generation = cluster.generation(host);
    let offer = match want {
        Want::Http1 => Offer::Http1,
        Want::Http2 => Offer::Http2,
        Want::Any => Offer::Any,
    };
    let result = async {
        let io = dial(cluster, host, host.source, offer).await?;
        if want == Want::Http2 || (want == Want::Any && chose_http2(&io)) {
            host.pool.speaks_http1.store(false, Ordering::Release);
            open_http2(host, io, open, generation).await
        } else {
            open_http1(host, io, open, generation).await
        }
    }
    .await;
    let counter = if result.is_ok() { &cluster.stats.connections } else { &cluster.stats.connect_failures };
    counter.fetch_add(1, Ordering::Relaxed);
    result
}

/// Lives from the dial to the end of the connection's task.
struct Open {
    cluster: Arc<UpstreamCluster>,
    /// Weak: an endpoint that is gone closes its idle connections by being dropped.
    host: std::sync::Weak<Host>,
    _permit: Permit,
}

impl Open {
    fn new(cluster: &Arc<UpstreamCluster>, host: &Arc<Host>, permit: Permit) -> Self {
        host.pool.open.fetch_add(1, Ordering::Relaxed);
        cluster.stats.active_connections.fetch_add(1, Ordering::Relaxed);
        Self { cluster: cluster.clone(), host: Arc::downgrade(host), _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cluster.stats.active_connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(host) = self.host.upgrade() {
            host.pool.open.fetch_sub(1, Ordering::Relaxed);
            host.pool.freed.notify_one();
        }
    }
}

fn broken(host: &Host, error: &hyper::Error) -> ConnectError {
    ConnectError::new(ConnectFailure::Handshake, format!("HTTP with {}: {error}", host.address))
}

/// Serves a connection until it ends, or is to end.
fn run<E: std::fmt::Display>(
    host: &Host,
    connection: impl Future<Output = Result<(), E>> + Send + 'static,
    open: Open,
) {
    let (address, closing) = (host.address, host.closing());
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%address, %error, "upstream connection ended");
            },
            () = closing.cancelled() => tracing::debug!(%address, "upstream connection is closed"),
        }
        drop(open);
    });
}

async fn open_http1(host: &Arc<Host>, io: Io, open: Open, generation: u64) -> Result<Lease, ConnectError> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits::RESPONSE_HEADERS_BYTES as usize)
        .max_headers(limits::HEADERS_COUNT as usize)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| broken(host, &e))?;
    run(host, connection.with_upgrades(), open);
    let now = Instant::now();
    let idle = IdleH1 { sender, generation, since: now, born: now, requests: 0 };
    Ok(Lease::H1(H1Lease::new(idle, host.clone(), false)))
}

async fn open_http2(host: &Arc<Host>, io: Io, open: Open, generation: u64) -> Result<Lease, ConnectError> {
    let config = &open.cluster.config;
    let (pings, windows) = (config.pings, config.windows);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(windows.0)
        .initial_connection_window_size(windows.1)
        .max_header_list_size(limits::RESPONSE_HEADERS_BYTES)
        .keep_alive_interval(pings.0)
        .keep_alive_timeout(pings.1)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|e| broken(host, &e))?;
    run(host, connection, open);
    let active = Arc::new(AtomicUsize::new(1));
    let now = Instant::now();
    let shared = SharedH2 {
        sender: sender.clone(),
        active: active.clone(),
        generation,
        last_used: now,
        born: now,
        requests: 1,
    };
    lock(&host.pool.shared).push(shared);
    Ok(Lease::H2(H2Lease::new(sender, active)))
}
