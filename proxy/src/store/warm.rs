//! Which listeners can be served.

use std::sync::Arc;

use super::{Effect, Kind, Store};
use crate::{
    config::{Cluster, Discovery, Listener},
    route::RouteTable,
};

impl Store {
    /// Serves every listener that is complete and not yet served in its newest version.
    pub(super) fn serve(&mut self, effects: &mut Vec<Effect>) {
        let ready: Vec<Arc<Listener>> = self
            .listeners
            .values()
            .filter(|l| !self.served.get(&l.name).is_some_and(|served| served == *l))
            .filter(|l| self.missing(l).next().is_none())
            .cloned()
            .collect();
        for listener in ready {
            effects.push(Effect::Serve(listener.clone()));
            self.served.insert(listener.name.clone(), listener);
        }
    }

    /// Listeners that wait, each with the first thing that it waits for.
    pub fn warming(&self) -> impl Iterator<Item = (&str, String)> {
        self.listeners
            .values()
            .filter(|l| !self.served.get(&l.name).is_some_and(|served| served == *l))
            .filter_map(|l| self.missing(l).next().map(|missing| (l.name.as_str(), missing)))
    }

    /// Whether the control plane has told which listeners and clusters there are, and all of the listeners are served.
    pub fn complete(&self) -> bool {
        [Kind::Listener, Kind::Cluster].iter().all(|kind| self.answered.contains(kind)) && self.all_served()
    }

    /// Whether every listener that is known is served.
    pub fn all_served(&self) -> bool {
        self.listeners.iter().all(|(name, l)| self.served.get(name).is_some_and(|served| served == l))
    }

    fn missing<'a>(&'a self, listener: &'a Listener) -> impl Iterator<Item = String> + 'a {
        let routes = listener
            .rds_names()
            .filter(|name| !self.routes.contains_key(*name))
            .map(|name| format!("route configuration {name:?}"));
        let secrets = listener
            .secrets()
            .filter(|secret| !self.secrets.contains_key(secret))
            .map(|secret| format!("secret {:?}", secret.name));
        let by_rds = listener
            .rds_names()
            .filter_map(|name| self.routes.get(name))
            .flat_map(|t| RouteTable::clusters(t));
        // A cluster that does not exist is not waited for: its requests are answered with 503.
        let clusters = listener
            .inline_clusters()
            .chain(by_rds)
            .filter_map(|name| self.clusters.get(name))
            .filter_map(|cluster| self.cluster_missing(cluster));
        routes.chain(secrets).chain(clusters)
    }

    fn cluster_missing(&self, cluster: &Cluster) -> Option<String> {
        if let Discovery::Eds(name) = &cluster.discovery
            && !self.endpoints.contains_key(name)
        {
            return Some(format!("endpoints {name:?}"));
        }
        let mut secrets = cluster.all_tls().flat_map(|tls| tls.common.secrets());
        let missing = secrets.find(|secret| !self.secrets.contains_key(secret))?;
        Some(format!("secret {:?} of cluster {:?}", missing.name, cluster.name))
    }

    /// Everything of one kind, as plain data without keys, for people.
    pub fn dump(&self) -> serde_json::Value {
        let secrets: Vec<_> = self
            .secrets
            .iter()
            .map(|(reference, material)| serde_json::json!({ "secret": reference, "holds": describe(material) }))
            .collect();
        serde_json::json!({
            "listeners": self.served.values().collect::<Vec<_>>(),
            "warming": self.warming().map(|(name, missing)| serde_json::json!({
                "listener": name, "waits_for": missing,
            })).collect::<Vec<_>>(),
            "clusters": self.clusters.values().collect::<Vec<_>>(),
            "routes": self.routes.values().collect::<Vec<_>>(),
            "endpoints": self.endpoints,
            "secrets": secrets,
        })
    }
}

fn describe(material: &super::Material) -> serde_json::Value {
    let info = |der: &mesh_tls::CertificateDer<'_>| match mesh_tls::certificate_info(der) {
        Ok(info) => serde_json::json!({
            "subject": info.subject,
            "issuer": info.issuer,
            "serial": info.serial,
            "not_after_unix": info.not_after_unix,
        }),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    };
    match material {
        super::Material::Identity(key) => {
            serde_json::json!({ "certificate_chain": key.cert.iter().map(info).collect::<Vec<_>>() })
        }
        super::Material::Bundles(bundles) => {
            let domains = bundles.iter().map(|(domain, roots)| {
                serde_json::json!({
                    "trust_domain": domain.as_str(),
                    "roots": roots.iter().map(info).collect::<Vec<_>>(),
                })
            });
            serde_json::json!({ "trust_domains": domains.collect::<Vec<_>>() })
        }
    }
}
