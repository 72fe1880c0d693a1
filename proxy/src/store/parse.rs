//! An update as plain data, or every reason why not.

use std::sync::Arc;

use mesh_tls::{Identity, TrustBundles};
use xds_client::{Resource, Update};
use xds_proto::{
    Message, Name,
    envoy::{
        config::{
            cluster::v3::Cluster as WireCluster, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener as WireListener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret as WireSecret,
    },
};

use super::{Kind, Material};
use crate::{
    balance::Assignment,
    config::{self, Cluster, ConfigError, Listener, Secret, SecretRef, Source},
    route::RouteTable,
};

/// Most problems that a NACK lists.
const MAX_PROBLEMS: usize = 10;

#[derive(Debug)]
pub(super) enum Parsed {
    Listeners(Vec<Arc<Listener>>),
    Clusters(Vec<Arc<Cluster>>),
    Routes(Vec<Arc<RouteTable>>),
    Endpoints(Vec<(String, Arc<Assignment>)>),
    Secrets(Vec<(SecretRef, Material)>),
}

impl Parsed {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Listeners(_) => Kind::Listener,
            Self::Clusters(_) => Kind::Cluster,
            Self::Routes(_) => Kind::Routes,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Secrets(_) => Kind::Secret,
        }
    }
}

pub(super) fn parse(source: Source, update: &Update) -> Result<Parsed, String> {
    let kind =
        Kind::of(&update.type_url).ok_or_else(|| format!("type {:?} is not used here", update.type_url))?;
    Ok(match kind {
        Kind::Listener => Parsed::Listeners(each(
            update,
            |w: WireListener| w.name.clone(),
            |w| config::listener(w).map(Arc::new),
        )?),
        Kind::Cluster => Parsed::Clusters(each(
            update,
            |w: WireCluster| w.name.clone(),
            |w| config::cluster(w).map(Arc::new),
        )?),
        Kind::Routes => Parsed::Routes(each(
            update,
            |w: RouteConfiguration| w.name.clone(),
            |w| config::routes(w).map(Arc::new),
        )?),
        Kind::Endpoints => Parsed::Endpoints(each(
            update,
            |w: ClusterLoadAssignment| w.cluster_name.clone(),
            |w| {
                let name = w.cluster_name.clone();
                config::assignment(w).map(|a| (name, Arc::new(a)))
            },
        )?),
        Kind::Secret => Parsed::Secrets(each(
            update,
            |w: WireSecret| w.name.clone(),
            |w| {
                let reference = SecretRef { source, name: w.name.clone() };
                config::secret(w).and_then(|secret| Ok((reference, material(secret)?)))
            },
        )?),
    })
}

fn each<M: Message + Name + Default + Clone, T>(
    update: &Update,
    name: impl Fn(M) -> String + Copy,
    convert: impl Fn(M) -> Result<T, ConfigError>,
) -> Result<Vec<T>, String> {
    let one = |resource: &Resource| -> Result<T, String> {
        let wire: M = resource.decode().map_err(|e| e.to_string())?;
        let inner = name(wire.clone());
        if inner != resource.name {
            return Err(format!("resource {:?} is named {inner:?} inside", resource.name));
        }
        convert(wire).map_err(|e| format!("resource {:?}: {e}", resource.name))
    };
    let mut good = Vec::with_capacity(update.added.len());
    let mut problems = vec![];
    for resource in &update.added {
        match one(resource) {
            Ok(value) => good.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        return Ok(good);
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(format!("{}{rest}", problems.join("; ")))
}

/// Checks that a secret can be used at all: the key fits the certificate, the roots are roots.
fn material(secret: Secret) -> Result<Material, ConfigError> {
    let root = config::Path::ROOT;
    match secret {
        Secret::Certificate(certificate) => {
            let path = root.field("tls_certificate");
            let identity = Identity { chain: certificate.chain, key: certificate.key };
            mesh_tls::certified(identity).map(Material::Identity).map_err(|e| path.malformed(e))
        }
        Secret::Validation(validation) => {
            let path = root.field("validation_context");
            let mut bundles = TrustBundles::new();
            let mut revoked = validation.revoked;
            for (domain, roots) in validation.roots {
                let refused = revoked.remove(&domain).unwrap_or_default();
                bundles.insert_but(domain, roots, refused).map_err(|e| path.malformed(e))?;
            }
            Ok(Material::Bundles(bundles))
        }
    }
}
