//! A cluster at work: its endpoints, balanced.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{Host, Limit, Permit, behalf, host::ActiveRequest, originals::Originals};
use crate::{
    balance::{Assignment, Candidate, Failure, LevelConfig, Levels, Verdict, pick},
    config::{Cluster, Discovery},
    telemetry::ClusterStats,
    tls::{ClientTls, Secrets},
};

/// The endpoints at one moment.
#[derive(Debug)]
struct HostSet {
    assignment: Arc<Assignment>,
    /// In the order of the assignment.
    hosts: Vec<Arc<Host>>,
    weights: Vec<u64>,
    levels: Levels,
    /// When the first ejected endpoint comes back.
    stale_at: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct UpstreamCluster {
    /// What the control plane said.
    pub config: Arc<Cluster>,
    /// Counters.
    pub stats: Arc<ClusterStats>,
    pub(super) tls: Option<ClientTls>,
    /// Circuit breakers.
    pub requests: Arc<Limit>,
    /// Circuit breakers.
    pub retries: Arc<Limit>,
    pub(super) connections: Arc<Limit>,
    pub(super) pending: Arc<Limit>,
    hosts: ArcSwap<HostSet>,
    /// Of an ORIGINAL_DST cluster.
    originals: Originals,
    /// Held while `hosts` is replaced; never by requests that only choose.
    replacing: Mutex<()>,
    cursor: AtomicU64,
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
        former: Option<&Self>,
    ) -> Result<Self, mesh_tls::Error> {
        let tls = config.tls.as_ref().map(|tls| ClientTls::new(secrets, tls)).transpose()?;
        let breakers = &config.breakers;
        let cluster = Self {
            requests: Limit::new(breakers.max_requests),
            retries: Limit::new(breakers.max_retries),
            connections: Limit::new(breakers.max_connections),
            pending: Limit::new(breakers.max_pending_requests),
            hosts: ArcSwap::from_pointee(HostSet {
                assignment: Arc::new(Assignment::empty()),
                hosts: vec![],
                weights: vec![],
                levels: Levels::default(),
                stale_at: None,
            }),
            replacing: Mutex::new(()),
            originals: Originals::default(),
            // So that proxies that start together do not all begin with the same endpoint.
            cursor: AtomicU64::new(rand::random()),
            config,
            stats,
            tls,
        };
        if let Some(former) = former {
            let set = former.hosts.load();
            let same_way =
                former.config.tls == cluster.config.tls && former.config.protocol == cluster.config.protocol;
            let known = if same_way { set.hosts.clone() } else { vec![] };
            cluster.replace(set.assignment.clone(), &known, Instant::now());
        }
        Ok(cluster)
    }

    /// The control plane gives other endpoints, or says something else about them.
    pub fn set_endpoints(&self, assignment: Arc<Assignment>) {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.hosts.load().hosts.clone();
        self.replace(assignment, &known, Instant::now());
    }

    fn replace(&self, assignment: Arc<Assignment>, known: &[Arc<Host>], now: Instant) {
        let mut by_address: HashMap<SocketAddr, Arc<Host>> =
            known.iter().map(|host| (host.address, host.clone())).collect();
        let host = |address: SocketAddr| {
            by_address.entry(address).or_insert_with(|| Arc::new(Host::new(address))).clone()
        };
        let hosts: Vec<_> = assignment.endpoints.iter().map(|e| e.address).map(host).collect();
        let weights = assignment.weights(self.config.by_locality);
        self.level(assignment, hosts, weights, now);
    }

    /// Sorts the endpoints anew by what is known of them now.
    fn level(&self, assignment: Arc<Assignment>, hosts: Vec<Arc<Host>>, weights: Vec<u64>, now: Instant) {
        let mut stale_at: Option<Instant> = None;
        let candidates: Vec<_> = assignment
            .endpoints
            .iter()
            .zip(&hosts)
            .zip(&weights)
            .map(|((endpoint, host), weight)| {
                let until = host.ejected_until(now);
                stale_at = [stale_at, until].into_iter().flatten().min();
                Candidate {
                    priority: endpoint.priority,
                    weight: *weight,
                    health: endpoint.health,
                    ejected: until.is_some(),
                }
            })
            .collect();
        let config = LevelConfig {
            overprovisioning: assignment.overprovisioning,
            panic_threshold: self.config.panic_threshold,
        };
        let levels = Levels::build(&candidates, config);
        self.hosts.store(Arc::new(HostSet { assignment, hosts, weights, levels, stale_at }));
    }

    fn refresh(&self, now: Instant) {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.hosts.load_full();
        self.level(set.assignment.clone(), set.hosts.clone(), set.weights.clone(), now);
    }

    /// Chooses an endpoint; not one of those that were tried, while another is left.
    pub fn choose(&self, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
        if matches!(self.config.discovery, Discovery::OriginalDestination) {
            return self.originals.at(behalf().asked?);
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
        let was_tried = |host: &Arc<Host>| tried.iter().any(|t| Arc::ptr_eq(t, host));
        let tried: Vec<u32> = if tried.is_empty() {
            vec![]
        } else {
            (0..).zip(&set.hosts).filter(|(_, host)| was_tried(host)).map(|(at, _)| at).collect()
        };
        let cursor = self.cursor.fetch_add(1, Ordering::Relaxed);
        let active = |at: u32| set.hosts.get(at as usize).map_or(u64::MAX, |host| host.active());
        let at = pick(&set.levels, self.config.policy, cursor, &mut rand::rng(), active, &tried)?;
        set.hosts.get(at as usize).cloned()
    }

    /// A request goes to this endpoint.
    pub fn begin(&self, host: &Arc<Host>) -> ActiveRequest {
        host.begin()
    }

    /// A connection of its own, as far as the circuit breaker allows it.
    pub fn try_connection(&self) -> Option<Permit> {
        self.connections.try_take()
    }

    /// An endpoint answered, and not with a server error.
    pub fn on_success(&self, host: &Host) {
        host.on_success();
    }

    /// An endpoint failed a request.
    pub fn on_failure(&self, host: &Host, failure: Failure) {
        let Some(config) = &self.config.outlier else { return };
        let now = Instant::now();
        let set = self.hosts.load();
        let out = set.hosts.iter().filter(|h| h.ejected_until(now).is_some()).count();
        let verdict = host.on_failure(failure, config, out, set.hosts.len(), now);
        drop(set);
        if let Verdict::Eject(until) = verdict {
            self.stats.ejections.fetch_add(1, Ordering::Relaxed);
            let time = until.saturating_duration_since(now);
            tracing::warn!(cluster = %self.config.name, endpoint = %host.address, ?time, "endpoint is ejected");
            self.refresh(now);
        }
    }

    /// Closes connections that nobody has used for a while.
    pub fn sweep(&self, now: Instant) {
        for host in &self.hosts.load().hosts {
            host.sweep(now, self.config.idle_timeout, self.generation());
        }
        self.originals.sweep(now, self.config.idle_timeout, self.generation());
    }

    pub(super) fn generation(&self) -> u64 {
        self.tls.as_ref().map_or(0, ClientTls::generation)
    }

    /// Every endpoint with what is known of it, for people.
    pub fn describe(&self) -> serde_json::Value {
        let now = Instant::now();
        let set = self.hosts.load();
        let endpoints = set.assignment.endpoints.iter().zip(&set.hosts).map(|(endpoint, host)| {
            let ejected =
                host.ejected_until(now).map(|until| until.saturating_duration_since(now).as_secs_f64());
            serde_json::json!({
                "address": endpoint.address,
                "priority": endpoint.priority,
                "weight": endpoint.weight,
                "locality": endpoint.locality_name,
                "health": endpoint.health,
                "ejected_for_seconds": ejected,
                "active_requests": host.active(),
                "connections": host.connections(),
            })
        });
        serde_json::json!({
            "name": &*self.config.name,
            "priority_loads_percent": set.levels.loads().iter().map(|(h, d)| h + d).collect::<Vec<_>>(),
            "active_requests": self.requests.used(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}
