//! The endpoints of a cluster at one moment, sorted for the choice among them.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use super::Host;
use crate::{
    balance::{
        Assignment, Candidate, Hashing, Health, LevelConfig, Levels, Metadata, Place, Policy, Spread, Subsets,
    },
    config::{Balancing, Cluster, Localities},
};

/// See the module.
#[derive(Debug)]
pub(super) struct HostSet {
    pub(super) assignment: Arc<Assignment>,
    /// In the order of the assignment.
    pub(super) hosts: Vec<Arc<Host>>,
    pub(super) levels: Levels,
    subsets: Option<Subsets>,
    /// When something of it is out of date without anything having happened: an ejected endpoint comes back, a share
    /// has grown.
    pub(super) stale_at: Option<Instant>,
}

/// Fixed-point scale of weights that grow.
const GROWING: f64 = 1024.0;

impl HostSet {
    pub(super) fn empty() -> Self {
        Self {
            assignment: Arc::new(Assignment::empty()),
            hosts: vec![],
            levels: Levels::default(),
            subsets: None,
            stale_at: None,
        }
    }

    /// Hosts for an assignment: known ones where there are, in the way in which they are connected to.
    pub(super) fn hosts(
        config: &Cluster,
        assignment: &Assignment,
        known: &[Arc<Host>],
        now: Instant,
    ) -> Vec<Arc<Host>> {
        let mut by_address: HashMap<(SocketAddr, usize), Arc<Host>> =
            known.iter().map(|host| ((host.address, host.socket), host.clone())).collect();
        let mut host = |address: SocketAddr, socket: usize| {
            let new = || Arc::new(Host::new(address, socket, now));
            by_address.entry((address, socket)).or_insert_with(new).clone()
        };
        assignment.endpoints.iter().map(|e| host(e.address, socket(config, &e.socket))).collect()
    }

    /// Sorts them by what is known of them now.
    pub(super) fn sort(
        config: &Cluster,
        place: &Place,
        assignment: Arc<Assignment>,
        hosts: Vec<Arc<Host>>,
        now: Instant,
    ) -> Self {
        let balancing = &config.balancing;
        let mut stale_at: Option<Instant> = None;
        let mut stale = |at: Option<Instant>| stale_at = [stale_at, at].into_iter().flatten().min();
        let candidates: Vec<_> = assignment
            .endpoints
            .iter()
            .zip(&hosts)
            .map(|(endpoint, host)| {
                let until = host.ejected_until(now);
                stale(until);
                let weight = match balancing.slow_start {
                    None => endpoint.weight.max(1).into(),
                    Some(slow) => {
                        let age = host.age(now);
                        if age < slow.window {
                            stale(Some(now + slow.step()));
                        }
                        let weight = f64::from(endpoint.weight.max(1)) * GROWING * slow.factor(age);
                        (weight as u64).max(1)
                    }
                };
                let checked = !config.health_checks.is_empty() && !endpoint.probe.disabled;
                Candidate {
                    priority: endpoint.priority,
                    weight,
                    health: if checked { both(endpoint.health, host) } else { endpoint.health },
                    ejected: until.is_some(),
                    locality: endpoint.locality,
                    locality_weight: endpoint.locality_weight.unwrap_or(0),
                }
            })
            .collect();
        let names = assignment.localities();
        let hashing = hashing(balancing, &assignment);
        let level_config = |by_locality: bool| LevelConfig {
            overprovisioning: assignment.overprovisioning,
            panic_threshold: config.panic_threshold,
            spread: match &balancing.localities {
                Localities::Weighted if by_locality => Spread::Weighted,
                Localities::Zones(zones) if by_locality => {
                    Spread::Zones { config: zones, place, names: &names }
                }
                Localities::Flat | Localities::Weighted | Localities::Zones(_) => Spread::Flat,
            },
            hashing: hashing.as_ref(),
        };
        let levels = Levels::build(&candidates, level_config(true));
        let subsets = balancing.subset.as_ref().map(|subset| {
            let endpoints: Vec<&Metadata> = assignment.endpoints.iter().map(|e| &*e.metadata).collect();
            Subsets::build(subset, &endpoints, |members| {
                let of = |at: &u32| candidates.get(*at as usize).map(|c| (*at, c));
                Levels::of(members.iter().filter_map(of).collect(), level_config(subset.by_locality))
            })
        });
        Self { assignment, hosts, levels, subsets, stale_at }
    }

    /// The levels that a request is for; `None`: no endpoint has what it asks for.
    pub(super) fn levels(&self, config: &Cluster, wanted: Option<&Metadata>) -> Option<&Levels> {
        match (&config.balancing.subset, &self.subsets) {
            (Some(subset), Some(subsets)) => subsets.find(subset, wanted, &self.levels),
            _ => Some(&self.levels),
        }
    }
}

/// Which of the ways to connect is for an endpoint with this metadata: the one that fits first, or the last.
pub(super) fn socket(config: &Cluster, has: &Metadata) -> usize {
    let fits = |wanted: &Metadata| wanted.iter().all(|(key, value)| has.get(key) == Some(value));
    let matches = &config.socket_matches;
    matches.iter().position(|m| fits(&m.wanted)).unwrap_or(matches.len())
}

/// The worse of what the control plane and active checks say.
fn both(told: Health, host: &Host) -> Health {
    let check = host.check();
    match told {
        Health::Unhealthy => Health::Unhealthy,
        _ if !check.healthy() => Health::Unhealthy,
        Health::Degraded => Health::Degraded,
        Health::Healthy if check.degraded() => Health::Degraded,
        Health::Healthy => Health::Healthy,
    }
}

fn hashing(balancing: &Balancing, assignment: &Assignment) -> Option<Arc<Hashing>> {
    let Policy::Hash(kind) = balancing.policy else { return None };
    let key = |e: &crate::balance::Endpoint| match e.metadata.get("hash_key") {
        // Envoy's way to name an endpoint for hashing whatever its address is.
        Some(serde_json::Value::String(key)) if !key.is_empty() => key.as_str().into(),
        _ if balancing.hash_by_name && !e.hostname.is_empty() => e.hostname.clone(),
        _ => e.address.to_string().into(),
    };
    let keys = assignment.endpoints.iter().map(key).collect();
    Some(Arc::new(Hashing { kind, keys, balance_percent: balancing.balance_percent }))
}
