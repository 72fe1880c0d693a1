//! A cluster at work: its endpoints, balanced.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    Host, Limit, Permit, behalf,
    breakers::{Breaker, Breakers},
    health::Checkers,
    host::ActiveRequest,
    host_set::HostSet,
    originals::Originals,
    task::Task,
};
use crate::{
    balance::{
        Assignment, Circumstances, Draw, EjectionConfig, Failure, Health, Metadata, Place, Verdict, outliers,
        pick,
    },
    config::{Cluster, Discovery, Priority},
    telemetry::ClusterStats,
    tls::{ClientTls, Secrets},
};

/// What a request asks of the choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// For policies that hash.
    pub hash: Option<u64>,
    /// For subsets.
    pub wanted: Option<&'a Metadata>,
    /// The endpoint to take if it can be used.
    pub named: Option<SocketAddr>,
    /// Endpoints that failed this request: none of them, while another is left.
    pub tried: &'a [Arc<Host>],
}

/// See the module.
#[derive(Debug)]
pub struct UpstreamCluster {
    /// What the control plane said.
    pub config: Arc<Cluster>,
    /// Counters.
    pub stats: Arc<ClusterStats>,
    /// By the ways to connect; those of `socket_matches` first.
    tls: Vec<Option<ClientTls>>,
    /// See there.
    pub breakers: Arc<Breakers>,
    /// Requests of priority DEFAULT.
    pub requests: Arc<Limit>,
    /// Retries of priority DEFAULT.
    pub retries: Arc<Limit>,
    hosts: ArcSwap<HostSet>,
    place: ArcSwap<Place>,
    /// Of an ORIGINAL_DST cluster.
    originals: Originals,
    /// Held while `hosts` is replaced; never by requests that only choose.
    replacing: Mutex<()>,
    checkers: Checkers,
    /// Looks at rates once in an interval.
    judging: OnceLock<Task>,
    cursor: AtomicU64,
    me: Weak<Self>,
}

impl UpstreamCluster {
    /// A cluster that is new, or takes the place of a `former` one. Endpoints and their connections are kept where they are
    /// reached in the same way as before.
    ///
    /// # Errors
    /// The TLS configuration cannot be built.
    pub fn new(
        config: Arc<Cluster>,
        secrets: &Secrets,
        stats: Arc<ClusterStats>,
        place: Arc<Place>,
        former: Option<&Self>,
    ) -> Result<Arc<Self>, mesh_tls::Error> {
        let sockets = config.socket_matches.iter().map(|m| m.tls.as_ref()).chain([config.tls.as_ref()]);
        let tls = sockets.map(|tls| tls.map(|tls| ClientTls::new(secrets, tls)).transpose());
        let tls = tls.collect::<Result<_, _>>()?;
        let breakers = Arc::new(Breakers::new(&config.breakers));
        stats.set_breakers(&breakers);
        let cluster = Arc::new_cyclic(|me| Self {
            requests: breakers.of(Priority::Default).requests.clone(),
            retries: breakers.of(Priority::Default).retries.clone(),
            breakers,
            hosts: ArcSwap::from_pointee(HostSet::empty()),
            place: ArcSwap::new(place),
            replacing: Mutex::new(()),
            checkers: Checkers::default(),
            judging: OnceLock::new(),
            originals: Originals::default(),
            // So that proxies that start together do not all begin with the same endpoint.
            cursor: AtomicU64::new(rand::random()),
            config,
            stats,
            tls,
            me: me.clone(),
        });
        if let Some(outlier) = &cluster.config.outlier {
            let _ = cluster.judging.set(Task::spawn(judge(cluster.me.clone(), outlier.interval)));
        }
        if let Some(former) = former {
            let set = former.hosts.load();
            let (was, is) = (&former.config, &cluster.config);
            let same_way = was.tls == is.tls
                && was.socket_matches == is.socket_matches
                && was.socket == is.socket
                && was.protocol == is.protocol
                && was.health_checks.is_empty() == is.health_checks.is_empty();
            let known = if same_way { set.hosts.clone() } else { vec![] };
            cluster.replace(set.assignment.clone(), &known, Instant::now());
        }
        Ok(cluster)
    }

    fn replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control plane gives other endpoints, or says something else about them.
    pub fn set_endpoints(&self, assignment: Arc<Assignment>) {
        let replacing = self.replacing();
        let known = self.hosts.load().hosts.clone();
        self.replace(assignment, &known, Instant::now());
        drop(replacing);
        let now: Vec<_> = self.hosts.load().hosts.iter().map(Arc::as_ptr).collect();
        if self.config.close_on_change && !known.iter().map(Arc::as_ptr).eq(now) {
            known.iter().for_each(|host| host.close());
        }
    }

    /// The proxies of the mesh have other places than before.
    pub fn set_place(&self, place: Arc<Place>) {
        self.place.store(place);
        self.refresh(Instant::now());
    }

    fn replace(&self, assignment: Arc<Assignment>, known: &[Arc<Host>], now: Instant) {
        let hosts = HostSet::hosts(&self.config, &assignment, known, now);
        self.checkers.follow(&self.me, &self.config, &assignment, &hosts);
        self.sort(assignment, hosts, now);
    }

    fn sort(&self, assignment: Arc<Assignment>, hosts: Vec<Arc<Host>>, now: Instant) {
        let set = HostSet::sort(&self.config, &self.place.load(), assignment, hosts, now);
        self.hosts.store(Arc::new(set));
    }

    /// Sorts the endpoints anew by what is known of them now.
    pub(super) fn refresh(&self, now: Instant) {
        let _replacing = self.replacing();
        let set = self.hosts.load_full();
        self.sort(set.assignment.clone(), set.hosts.clone(), now);
    }

    /// Chooses an endpoint; not one of those that were tried, while another is left.
    pub fn choose(&self, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
        self.choose_for(&Ask { tried, ..Ask::default() })
    }

    /// Chooses an endpoint for a request.
    pub fn choose_for(&self, ask: &Ask<'_>) -> Option<Arc<Host>> {
        if matches!(self.config.discovery, Discovery::OriginalDestination) {
            return self.originals.at(behalf().asked?, self.config.socket_matches.len());
        }
        let mut set = self.hosts.load();
        if let Some(stale_at) = set.stale_at {
            let now = Instant::now();
            if now >= stale_at {
                drop(set);
                self.refresh(now);
                set = self.hosts.load();
            }
        }
        let was_tried = |host: &Arc<Host>| ask.tried.iter().any(|t| Arc::ptr_eq(t, host));
        if let Some(named) = ask.named
            && let Some(host) = self.usable(&set, named)
            && !was_tried(&host)
        {
            return Some(host);
        }
        let tried: Vec<u32> = if ask.tried.is_empty() {
            vec![]
        } else {
            (0..).zip(&set.hosts).filter(|(_, host)| was_tried(host)).map(|(at, _)| at).collect()
        };
        let draw = Draw {
            cursor: self.cursor.fetch_add(1, Ordering::Relaxed),
            hash: ask.hash,
            active: |at: u32| set.hosts.get(at as usize).map_or(u64::MAX, |host| host.active()),
            active_total: self.stats.active_requests.load(Ordering::Relaxed),
            tried: &tried,
        };
        let levels = set.levels(&self.config, ask.wanted)?;
        let at = pick(levels, self.config.balancing.policy, &mut rand::rng(), &draw)?;
        set.hosts.get(at as usize).cloned()
    }

    /// An endpoint by its address, if it is neither unhealthy nor ejected.
    fn usable(&self, set: &HostSet, address: SocketAddr) -> Option<Arc<Host>> {
        let checked = !self.config.health_checks.is_empty();
        let mut all = set.assignment.endpoints.iter().zip(&set.hosts);
        let (endpoint, host) = all.find(|(_, host)| host.address == address)?;
        let well = endpoint.health != Health::Unhealthy
            && (!checked || endpoint.probe.disabled || host.check().healthy())
            && host.ejected_until(Instant::now()).is_none();
        well.then(|| host.clone())
    }

    /// The category by which a request is turned away, if it is (`drop_overloads`).
    pub fn drops(&self) -> Option<String> {
        let set = self.hosts.load();
        let category = set.assignment.drops(|| rand::random_range(0..1_000_000))?;
        Some(category.to_owned())
    }

    /// A request goes to this endpoint.
    pub fn begin(&self, host: &Arc<Host>) -> ActiveRequest {
        host.begin()
    }

    /// A connection of its own, as far as the circuit breaker allows it.
    pub fn try_connection(&self) -> Option<Permit> {
        self.breaker(Priority::Default).connections.try_take()
    }

    /// Circuit breakers of a priority.
    pub fn breaker(&self, priority: Priority) -> &Breaker {
        self.breakers.of(priority)
    }

    /// An endpoint answered, and not with a server error.
    pub fn on_success(&self, host: &Host) {
        host.on_success(self.config.outlier.as_ref());
    }

    fn circumstances(&self, now: Instant) -> Circumstances {
        let set = self.hosts.load();
        Circumstances {
            out: set.hosts.iter().filter(|h| h.ejected_until(now).is_some()).count(),
            all: set.hosts.len(),
            dice: rand::random_range(0..100),
            jitter: rand::random_range(0.0..1.0),
            now,
        }
    }

    /// An endpoint failed a request.
    pub fn on_failure(&self, host: &Host, failure: Failure) {
        let Some(config) = &self.config.outlier else { return };
        let circumstances = self.circumstances(Instant::now());
        if self.judged(host, host.on_failure(failure, config, circumstances), circumstances.now) {
            self.refresh(circumstances.now);
        }
    }

    /// Looks at the rates of an interval.
    fn judge_rates(&self, config: &EjectionConfig, now: Instant) {
        let hosts = self.hosts.load().hosts.clone();
        let in_use = |host: &&Arc<Host>| host.ejected_until(now).is_none();
        let judged: Vec<_> = hosts.iter().filter(in_use).map(|host| (host, host.take_samples())).collect();
        let (answers, reached): (Vec<_>, Vec<_>) = judged.iter().map(|(_, samples)| *samples).unzip();
        let mut found = outliers(&config.rates, &answers, false);
        if config.split_local_origin {
            found.extend(outliers(&config.rates, &reached, true));
        }
        let mut changed = false;
        for outlier in found {
            if let Some((host, _)) = judged.get(outlier.host) {
                // Each one that goes changes what the next one finds.
                let circumstances = self.circumstances(now);
                let verdict = host.eject(outlier.reason, outlier.enforcing, config, circumstances);
                changed |= self.judged(host, verdict, now);
            }
        }
        if changed {
            self.refresh(now);
        }
    }

    /// Whether it is ejected.
    fn judged(&self, host: &Host, verdict: Verdict, now: Instant) -> bool {
        match verdict {
            Verdict::Keep => false,
            Verdict::Spare(reason) => {
                self.stats.outliers.count(reason, false);
                false
            }
            Verdict::Eject(reason, until) => {
                self.stats.ejections.fetch_add(1, Ordering::Relaxed);
                self.stats.outliers.count(reason, true);
                let time = until.saturating_duration_since(now);
                let endpoint = host.address;
                tracing::warn!(cluster = %self.config.name, %endpoint, ?time, ?reason, "endpoint is ejected");
                if self.config.close_on_failure {
                    host.close();
                }
                true
            }
        }
    }

    /// Closes connections that nobody has used for a while.
    pub fn sweep(&self, now: Instant) {
        for host in &self.hosts.load().hosts {
            host.sweep(now, &self.config, self.generation(host));
        }
        let generation = self.tls(self.config.socket_matches.len()).map_or(0, ClientTls::generation);
        self.originals.sweep(now, &self.config, generation);
    }

    pub(super) fn tls(&self, socket: usize) -> Option<&ClientTls> {
        self.tls.get(socket).and_then(Option::as_ref)
    }

    pub(super) fn generation(&self, host: &Host) -> u64 {
        self.tls(host.socket).map_or(0, ClientTls::generation)
    }

    /// The endpoints of this moment.
    pub fn endpoints(&self) -> Arc<Assignment> {
        self.hosts.load().assignment.clone()
    }

    /// Whether every endpoint has been asked for its health at least once, where they are.
    pub fn checked(&self) -> bool {
        let set = self.hosts.load();
        let mut all = set.assignment.endpoints.iter().zip(&set.hosts);
        self.config.health_checks.is_empty()
            || all.all(|(endpoint, host)| endpoint.probe.disabled || !host.check().pending())
    }

    /// Every endpoint with what is known of it, for people.
    pub fn describe(&self) -> serde_json::Value {
        let now = Instant::now();
        let set = self.hosts.load();
        let checked = !self.config.health_checks.is_empty();
        let endpoints = set.assignment.endpoints.iter().zip(&set.hosts).map(|(endpoint, host)| {
            let ejected =
                host.ejected_until(now).map(|until| until.saturating_duration_since(now).as_secs_f64());
            serde_json::json!({
                "address": endpoint.address,
                "hostname": endpoint.hostname,
                "priority": endpoint.priority,
                "weight": endpoint.weight,
                "locality": endpoint.locality_name,
                "health": endpoint.health,
                "passes_health_checks": (checked && !endpoint.probe.disabled).then(|| host.check().healthy()),
                "ejected_for_seconds": ejected,
                "active_requests": host.active(),
                "connections": host.connections(),
            })
        });
        serde_json::json!({
            "name": &*self.config.name,
            "priority_loads_percent": set.levels.loads().iter().map(|(h, d)| h + d).collect::<Vec<_>>(),
            "active_requests": Priority::ALL.map(|p| self.breaker(p).requests.used()).iter().sum::<u32>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

async fn judge(cluster: Weak<UpstreamCluster>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(cluster) = cluster.upgrade() else { return };
        if let Some(outlier) = &cluster.config.outlier {
            cluster.judge_rates(outlier, Instant::now());
        }
    }
}
