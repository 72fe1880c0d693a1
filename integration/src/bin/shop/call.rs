//! The client: every request has a deadline, and every outcome is counted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

#[derive(clap::Args, Clone)]
pub(crate) struct Call {
    /// Where to connect to.
    #[arg(long)]
    to: SocketAddr,
    /// The Host header.
    #[arg(long)]
    host: String,
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value = "GET")]
    method: http::Method,
    /// `name: value`
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// How many requests; with --for-ms at most so many.
    #[arg(short = 'n', long, default_value_t = 1)]
    requests: u64,
    /// Goes on for so long.
    #[arg(long)]
    for_ms: Option<u64>,
    /// Goes on until this file exists.
    #[arg(long)]
    until: Option<PathBuf>,
    /// Writes there how many requests were answered so far.
    #[arg(long)]
    progress: Option<PathBuf>,
    /// Pause of each worker between two requests.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    #[arg(short, long, default_value_t = 1)]
    concurrency: u64,
    /// Deadline of one request, connecting included.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// A connection a request, instead of one a worker.
    #[arg(long)]
    new_connections: bool,
}

/// What became of the requests.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    sent: u64,
    /// Answered with 2xx.
    ok: u64,
    failed: u64,
    /// Connections made: as many as workers, if none was lost.
    connections: u64,
    /// By status code.
    statuses: BTreeMap<String, u64>,
    /// By text, for requests without an answer.
    errors: BTreeMap<String, u64>,
    /// By the answering application's version.
    versions: BTreeMap<String, u64>,
    /// By the answering application's cluster.
    clusters: BTreeMap<String, u64>,
    /// Unix time in ms of the first answer from each cluster.
    first_from: BTreeMap<String, u64>,
    /// Unix time in ms of each failure, the first 100.
    failures_at: Vec<u64>,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// The last answer.
    last: Value,
    #[serde(skip)]
    latencies: Vec<f64>,
}

impl Call {
    pub(crate) async fn run(self) -> Report {
        let report = Arc::new(Mutex::new(Report::default()));
        let left = Arc::new(AtomicU64::new(self.requests));
        let end = self.for_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let workers: Vec<_> = (0..self.concurrency.clamp(1, 256))
            .map(|_| tokio::spawn(self.clone().worker(Arc::clone(&report), Arc::clone(&left), end)))
            .collect();
        for worker in workers {
            let _ = worker.await;
        }
        let mut report =
            std::mem::take(&mut *report.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        report.latencies.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = report.latencies.len().saturating_sub(1);
            report.latencies.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
        };
        (report.p50_ms, report.p99_ms, report.max_ms) = (at(0.5), at(0.99), at(1.0));
        report
    }

    async fn worker(self, report: Arc<Mutex<Report>>, left: Arc<AtomicU64>, end: Option<Instant>) {
        let mut connection = None;
        while end.is_none_or(|end| Instant::now() < end)
            && self.until.as_ref().is_none_or(|file| !file.exists())
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            let start = Instant::now();
            let outcome =
                timeout(Duration::from_millis(self.timeout_ms), self.request(&mut connection, &report)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("no answer in time")));
            if outcome.is_err() || self.new_connections {
                connection = None;
            }
            let elapsed = start.elapsed();
            let answered = {
                let mut report = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                report.count(outcome, elapsed);
                report.ok
            };
            crate::tell(self.progress.as_deref(), answered);
            if self.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
            }
        }
    }

    async fn request(
        &self,
        connection: &mut Option<SendRequest<Empty<Bytes>>>,
        report: &Mutex<Report>,
    ) -> Result<(StatusCode, Value)> {
        let sender = match connection {
            Some(sender) if !sender.is_closed() => sender,
            _ => {
                let stream = TcpStream::connect(self.to).await.context("connect")?;
                stream.set_nodelay(true)?;
                report.lock().unwrap_or_else(std::sync::PoisonError::into_inner).connections += 1;
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                connection.insert(sender)
            }
        };
        sender.ready().await?;
        let mut request = Request::builder().method(&self.method).uri(&self.path).header("host", &self.host);
        for header in &self.headers {
            let Some((name, value)) = header.split_once(':') else { bail!("header {header:?} has no colon") };
            request = request.header(name.trim(), value.trim());
        }
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
    }
}

impl Report {
    fn count(&mut self, outcome: Result<(StatusCode, Value)>, elapsed: Duration) {
        self.sent += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let ok = match outcome {
            Ok((status, body)) => {
                *self.statuses.entry(status.as_u16().to_string()).or_default() += 1;
                if status.is_success() {
                    self.latencies.push(elapsed.as_secs_f64() * 1000.0);
                    if let Some(version) = body["version"].as_str() {
                        *self.versions.entry(version.to_owned()).or_default() += 1;
                    }
                    if let Some(cluster) = body["cluster"].as_str() {
                        *self.clusters.entry(cluster.to_owned()).or_default() += 1;
                        self.first_from.entry(cluster.to_owned()).or_insert(now);
                    }
                }
                self.last = body;
                status.is_success()
            }
            Err(error) => {
                *self.errors.entry(format!("{error:#}")).or_default() += 1;
                false
            }
        };
        if ok {
            self.ok += 1;
        } else {
            self.failed += 1;
            if self.failures_at.len() < 100 {
                self.failures_at.push(now);
            }
        }
    }
}
