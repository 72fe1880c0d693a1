//! What the control plane said so far, and which update changes what. Pure: an update comes in, effects come out,
//! and the shell ([`crate::subscribe`]) carries them out without further choices.
//!
//! * An update is taken as a whole or refused as a whole, with every problem named.
//! * A listener is served only when its routes and secrets, and the endpoints of the clusters it sends to, are known; until
//!   then its former version goes on. Once served it stays, whatever is missing later.
//! * Effects are make-before-break: clusters, endpoints, secrets and routes before listeners, removals last.

mod effect;
mod parse;
mod warm;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use effect::{Effect, Kind};
use mesh_tls::{CertifiedKey, TrustBundles};
use parse::Parsed;
use xds_client::Update;

use crate::{
    balance::Assignment,
    config::{Cluster, Discovery, Listener, SecretRef, Source},
    route::RouteTable,
};

/// A secret that can be used.
#[derive(Debug, Clone)]
pub enum Material {
    /// An own certificate.
    Identity(Arc<CertifiedKey>),
    /// Roots.
    Bundles(TrustBundles),
}

/// Names that are subscribed to, by stream and type.
type Wanted = BTreeMap<(Source, Kind), BTreeSet<String>>;

/// The state.
#[derive(Debug, Default)]
pub struct Store {
    listeners: BTreeMap<String, Arc<Listener>>,
    /// Given to the shell, perhaps older than in `listeners`.
    served: BTreeMap<String, Arc<Listener>>,
    clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    routes: BTreeMap<String, Arc<RouteTable>>,
    endpoints: BTreeMap<String, Arc<Assignment>>,
    secrets: BTreeMap<SecretRef, Material>,
    wanted: Wanted,
    answered: BTreeSet<Kind>,
}

impl Store {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an update of one of the streams.
    ///
    /// # Errors
    /// What is wrong, for the NACK: every resource that is refused, with the path of the field. Nothing is changed then.
    pub fn apply(&mut self, source: Source, update: &Update) -> Result<Vec<Effect>, String> {
        let parsed = parse::parse(source, update)?;
        let kind = parsed.kind();
        self.answered.insert(kind);
        let mut effects = vec![];
        let mut removals = vec![];
        match parsed {
            Parsed::Listeners(added) => {
                self.listeners.extend(added.into_iter().map(|l| (l.name.clone(), l)));
                for name in &update.removed {
                    self.listeners.remove(name);
                    if self.served.remove(name).is_some() {
                        removals.push(Effect::Withdraw(name.clone()));
                    }
                }
            }
            Parsed::Clusters(added) => {
                self.take_clusters(added, &update.removed, &mut effects, &mut removals)
            }
            Parsed::Routes(added) => {
                for table in added {
                    effects.push(Effect::SetRoutes(table.clone()));
                    self.routes.insert(table.name.clone(), table);
                }
                // A removed route table stays while a listener uses it, as in Envoy: the listener's own removal ends it.
            }
            Parsed::Endpoints(added) => {
                // Asked for, and not there: that is an answer too.
                let gone = update.removed.iter().map(|name| (name.clone(), Arc::new(Assignment::empty())));
                for (name, assignment) in added.into_iter().chain(gone) {
                    self.take_endpoints(name, assignment, &mut effects);
                }
            }
            Parsed::Secrets(added) => {
                for (secret, material) in added {
                    effects.push(Effect::SetSecret(secret.clone(), material.clone()));
                    self.secrets.insert(secret, material);
                }
                // A removed secret goes on being used, as in Envoy: without it nothing could be served at all.
            }
        }
        if matches!(kind, Kind::Listener | Kind::Cluster) {
            self.subscribe(&mut removals);
        }
        self.serve(&mut effects);
        effects.extend(removals);
        Ok(effects)
    }

    fn take_clusters(
        &mut self,
        added: Vec<Arc<Cluster>>,
        removed: &[String],
        effects: &mut Vec<Effect>,
        removals: &mut Vec<Effect>,
    ) {
        for cluster in added {
            if self.clusters.get(&cluster.name).is_some_and(|known| *known == cluster) {
                continue;
            }
            effects.push(Effect::SetCluster(cluster.clone()));
            let assignment = match &cluster.discovery {
                Discovery::Static(assignment) => Some(assignment.clone()),
                Discovery::Eds(name) => self.endpoints.get(name).cloned(),
                Discovery::OriginalDestination => None,
            };
            if let Some(assignment) = assignment {
                effects.push(Effect::SetEndpoints(cluster.name.clone(), assignment));
            }
            self.clusters.insert(cluster.name.clone(), cluster);
        }
        for name in removed {
            if let Some((name, _)) = self.clusters.remove_entry(name.as_str()) {
                removals.push(Effect::RemoveCluster(name));
            }
        }
    }

    fn take_endpoints(&mut self, name: String, assignment: Arc<Assignment>, effects: &mut Vec<Effect>) {
        for cluster in self.clusters.values() {
            if matches!(&cluster.discovery, Discovery::Eds(eds) if *eds == name) {
                effects.push(Effect::SetEndpoints(cluster.name.clone(), assignment.clone()));
            }
        }
        self.endpoints.insert(name, assignment);
    }

    /// Compares what is needed with what is subscribed to, and forgets what is needed no more.
    fn subscribe(&mut self, effects: &mut Vec<Effect>) {
        let wanted = self.needed();
        for (key, names) in &wanted {
            let had = self.wanted.get(key);
            let new: Vec<_> =
                names.iter().filter(|n| !had.is_some_and(|h| h.contains(*n))).cloned().collect();
            if !new.is_empty() {
                effects.push(Effect::Subscribe { source: key.0, kind: key.1, names: new });
            }
        }
        let former = std::mem::take(&mut self.wanted);
        for ((source, kind), names) in &former {
            let has = wanted.get(&(*source, *kind));
            let old: Vec<_> =
                names.iter().filter(|n| !has.is_some_and(|h| h.contains(*n))).cloned().collect();
            for name in &old {
                self.forget(*source, *kind, name, effects);
            }
            if !old.is_empty() {
                effects.push(Effect::Unsubscribe { source: *source, kind: *kind, names: old });
            }
        }
        self.wanted = wanted;
    }

    fn forget(&mut self, source: Source, kind: Kind, name: &str, effects: &mut Vec<Effect>) {
        match kind {
            Kind::Routes => {
                if self.routes.remove(name).is_some() {
                    effects.push(Effect::RemoveRoutes(name.to_owned()));
                }
            }
            Kind::Endpoints => {
                self.endpoints.remove(name);
            }
            Kind::Secret => {
                let secret = SecretRef { source, name: name.to_owned() };
                if self.secrets.remove(&secret).is_some() {
                    effects.push(Effect::RemoveSecret(secret));
                }
            }
            Kind::Listener | Kind::Cluster => {}
        }
    }

    fn needed(&self) -> Wanted {
        let mut wanted = Wanted::new();
        let mut want = |source, kind, name: &str| {
            wanted.entry((source, kind)).or_default().insert(name.to_owned());
        };
        // The served version of a listener may differ from the newest while that waits.
        for listener in self.listeners.values().chain(self.served.values()) {
            listener.rds_names().for_each(|name| want(Source::Ads, Kind::Routes, name));
            listener.secrets().for_each(|s| want(s.source, Kind::Secret, &s.name));
        }
        for cluster in self.clusters.values() {
            if let Discovery::Eds(name) = &cluster.discovery {
                want(Source::Ads, Kind::Endpoints, name);
            }
            let secrets = cluster.all_tls().flat_map(|tls| tls.common.secrets());
            secrets.for_each(|s| want(s.source, Kind::Secret, &s.name));
        }
        wanted
    }
}
