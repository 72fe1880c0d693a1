//! Asks endpoints how they are: a task for each of them, as long as it is one.

mod probe;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Instant,
};

use probe::Kept;

use super::{Host, UpstreamCluster, host_set, task::Task};
use crate::{
    balance::{Assignment, Checked, ProbeTarget},
    config::{Cluster, HealthCheck},
};

/// Who is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// Which of the cluster's ways to connect.
    pub(super) socket: usize,
    /// In place of the check's own.
    pub(super) hostname: String,
}

/// The tasks of a cluster, by the address of their host in memory.
#[derive(Debug, Default)]
pub(super) struct Checkers(Mutex<HashMap<usize, (Target, Task)>>);

impl Checkers {
    /// These are the endpoints from now on.
    pub(super) fn follow(
        &self,
        cluster: &Weak<UpstreamCluster>,
        config: &Arc<Cluster>,
        assignment: &Assignment,
        hosts: &[Arc<Host>],
    ) {
        let Some(check) = config.health_checks.first() else { return };
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = std::mem::take(&mut *tasks);
        for (endpoint, host) in assignment.endpoints.iter().zip(hosts) {
            let key = Arc::as_ptr(host) as usize;
            if endpoint.probe.disabled || tasks.contains_key(&key) {
                continue;
            }
            let target = target(config, check, host, &endpoint.probe);
            let task = match former.remove(&key) {
                Some(same) if same.0 == target => same,
                _ => {
                    let run = run(cluster.clone(), Arc::downgrade(host), target.clone());
                    (target, Task::spawn(run))
                }
            };
            tasks.insert(key, task);
        }
    }
}

fn target(config: &Cluster, check: &HealthCheck, host: &Host, probe: &ProbeTarget) -> Target {
    let port = probe.port.or(check.alt_port).unwrap_or(host.address.port());
    Target {
        address: SocketAddr::new(probe.ip.unwrap_or(host.address.ip()), port),
        socket: check.socket.as_ref().map_or(host.socket, |wanted| host_set::socket(config, wanted)),
        hostname: probe.hostname.clone(),
    }
}

async fn run(cluster: Weak<UpstreamCluster>, host: Weak<Host>, target: Target) {
    let random = || rand::random_range(0.0..1.0);
    let mut kept = Kept::default();
    let mut next = match cluster.upgrade().as_deref().and_then(|c| c.config.health_checks.first()) {
        Some(check) if host.upgrade().is_some_and(|host| host.check().pending()) => {
            check.timing.first(random)
        }
        Some(check) => check.timing.interval.mul_f64(random()),
        None => return,
    };
    loop {
        tokio::time::sleep(next).await;
        let (Some(cluster), Some(host)) = (cluster.upgrade(), host.upgrade()) else { return };
        let Some(check) = cluster.config.health_checks.first() else { return };
        let probing = probe::run(&cluster, check, &target, &mut kept);
        let outcome = match tokio::time::timeout(check.timing.timeout, probing).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                tracing::debug!(cluster = %cluster.config.name, endpoint = %target.address, %error, "health check");
                Checked::Failed
            }
            Err(_) => Checked::Failed,
        };
        let passed = matches!(outcome, Checked::Passed { .. });
        if !passed || !check.reuse_connection {
            kept = Kept::default();
        }
        next = ended(&cluster, check, &host, outcome);
    }
}

/// When the next one is due.
fn ended(
    cluster: &UpstreamCluster,
    check: &HealthCheck,
    host: &Host,
    outcome: Checked,
) -> std::time::Duration {
    let stats = &cluster.stats;
    stats.health_checks.fetch_add(1, Ordering::Relaxed);
    let passed = matches!(outcome, Checked::Passed { .. });
    if !passed {
        stats.health_check_failures.fetch_add(1, Ordering::Relaxed);
    }
    let now = Instant::now();
    let used = stats.connections.load(Ordering::Relaxed) > 0;
    let was = host.check();
    let (mut changed, next) = host.on_check(outcome, &check.timing, used, now);
    let is = host.check();
    if passed && cluster.config.outlier.as_ref().is_some_and(|outlier| outlier.uneject_on_check) {
        changed |= host.uneject(now);
    }
    if changed {
        if was.healthy() != is.healthy() {
            let (cluster, endpoint) = (&cluster.config.name, host.address);
            tracing::info!(%cluster, %endpoint, healthy = is.healthy(), "health check");
        }
        cluster.refresh(now);
        if was.healthy() && !is.healthy() && cluster.config.close_on_failure {
            host.close();
        }
        cluster.stats.first_checks.notify_waiters();
    }
    next
}
