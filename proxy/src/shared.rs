//! What every connection can reach: the clusters of this moment, counters, secrets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;

use crate::{
    balance::{Assignment, Health, Place},
    config::Cluster,
    keys::KeyCache,
    outbound::UpstreamCluster,
    overload::{Ceilings, Overload},
    telemetry::Stats,
    tls::Secrets,
};

/// Where a proxy is, for zone-aware routing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Home {
    /// `region/zone/sub_zone`; empty: unknown.
    pub locality: String,
    /// The cluster whose endpoints the proxies are; empty: none.
    pub cluster: String,
}

type Clusters = HashMap<Arc<str>, Arc<UpstreamCluster>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Shared {
    clusters: ArcSwap<Clusters>,
    /// Held while `clusters` is replaced.
    replacing: Mutex<()>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Certificates and roots.
    pub secrets: Secrets,
    /// Keys of token issuers.
    pub keys: KeyCache,
    /// Whether each request is logged at level info.
    pub access_log: bool,
    /// What is shed when there is too much.
    pub overload: Overload,
    /// Where this proxy is, and which cluster tells where the others are.
    home: Home,
    place: ArcSwap<Place>,
}

impl Shared {
    /// Nothing is known yet.
    pub fn new(access_log: bool, ceilings: Ceilings, home: Home) -> Arc<Self> {
        let place = Place { mine: home.locality.clone(), ..Place::default() };
        let stats: Arc<Stats> = Arc::default();
        let overload = Overload::new(ceilings, stats.clone());
        let place = ArcSwap::from_pointee(place);
        Arc::new(Self { access_log, overload, home, place, stats, ..Self::default() })
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<Arc<UpstreamCluster>> {
        self.clusters.load().get(name).cloned()
    }

    /// All of them, by name.
    pub fn clusters(&self) -> Vec<Arc<UpstreamCluster>> {
        let mut all: Vec<_> = self.clusters.load().values().cloned().collect();
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    /// Adds or replaces clusters. Requests that are under way keep the one they began with. One whose TLS cannot be
    /// configured stays as it was.
    pub fn set_clusters(&self, configs: Vec<Arc<Cluster>>) {
        if configs.is_empty() {
            return;
        }
        self.change(|clusters| {
            for config in configs {
                let name = config.name.clone();
                let stats = self.stats.cluster(&name);
                let former = clusters.get(&name).map(|c| &**c);
                match UpstreamCluster::new(config, &self.secrets, stats, self.place.load_full(), former) {
                    Ok(cluster) => {
                        clusters.insert(name, cluster);
                    }
                    Err(error) => tracing::error!(cluster = %name, %error, "cluster cannot be set up"),
                }
            }
        });
    }

    /// Gives a cluster its endpoints.
    pub fn set_endpoints(&self, cluster: &str, assignment: Arc<Assignment>) {
        if !self.home.cluster.is_empty() && cluster == self.home.cluster {
            self.set_place(&assignment);
        }
        if let Some(cluster) = self.cluster(cluster) {
            cluster.set_endpoints(assignment);
        }
    }

    /// The proxies themselves are here and there.
    fn set_place(&self, proxies: &Assignment) {
        let mut place = Place { mine: self.home.locality.clone(), ..Place::default() };
        for proxy in proxies.endpoints.iter().filter(|e| e.health == Health::Healthy) {
            *place.proxies.entry(proxy.locality_name.to_string()).or_default() += 1;
        }
        let place = Arc::new(place);
        if **self.place.load() == *place {
            return;
        }
        self.place.store(place.clone());
        self.clusters.load().values().for_each(|cluster| cluster.set_place(place.clone()));
    }

    /// Takes clusters away.
    pub fn remove_clusters(&self, names: &[Arc<str>]) {
        if names.is_empty() {
            return;
        }
        self.change(|clusters| names.iter().for_each(|name| drop(clusters.remove(name))));
        names.iter().for_each(|name| self.stats.forget_cluster(name));
    }

    /// Closes connections that nobody has used for a while.
    pub fn sweep(&self) {
        let now = Instant::now();
        for cluster in self.clusters.load().values() {
            cluster.sweep(now);
        }
    }

    fn change(&self, edit: impl FnOnce(&mut Clusters)) {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clusters = Clusters::clone(&self.clusters.load());
        edit(&mut clusters);
        self.clusters.store(Arc::new(clusters));
    }
}
