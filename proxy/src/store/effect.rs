//! Everything that the store can ask the shell to do.

use std::sync::Arc;

use mesh_tls::CertifiedKey;
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::Cluster as WireCluster, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener as WireListener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret as WireSecret,
    },
    type_url,
};

use super::Material;
use crate::{
    balance::Assignment,
    config::{Cluster, Listener, SecretRef, Source},
    route::RouteTable,
};

/// The types that are subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// LDS, all of them.
    Listener,
    /// CDS, all of them.
    Cluster,
    /// RDS, by name.
    Routes,
    /// EDS, by name.
    Endpoints,
    /// SDS, by name.
    Secret,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes, Self::Secret];

    /// Type URL of its resources.
    pub fn type_url(self) -> String {
        match self {
            Self::Listener => type_url::<WireListener>(),
            Self::Cluster => type_url::<WireCluster>(),
            Self::Routes => type_url::<RouteConfiguration>(),
            Self::Endpoints => type_url::<ClusterLoadAssignment>(),
            Self::Secret => type_url::<WireSecret>(),
        }
    }

    /// The other way round.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// One thing to do. The order in a list matters.
#[derive(Debug, Clone)]
pub enum Effect {
    /// A cluster is new or has changed. Its endpoints follow, where they are known.
    SetCluster(Arc<Cluster>),
    /// A cluster has these endpoints from now on.
    SetEndpoints(Arc<str>, Arc<Assignment>),
    /// A secret is new or has been rotated.
    SetSecret(SecretRef, Material),
    /// A route table is new or has changed. Requests that are under way keep the one they began with.
    SetRoutes(Arc<RouteTable>),
    /// A listener is complete: bind it, or give new connections the new version.
    Serve(Arc<Listener>),
    /// A listener is gone: close its socket and let its connections finish.
    Withdraw(String),
    /// No listener uses it any more.
    RemoveRoutes(String),
    /// Requests to it are answered with 503 from now on.
    RemoveCluster(Arc<str>),
    /// Nobody uses it any more.
    RemoveSecret(SecretRef),
    /// Ask for these as well.
    Subscribe {
        /// On which stream.
        source: Source,
        /// Of which type.
        kind: Kind,
        /// By name.
        names: Vec<String>,
    },
    /// Ask for these no more.
    Unsubscribe {
        /// On which stream.
        source: Source,
        /// Of which type.
        kind: Kind,
        /// By name.
        names: Vec<String>,
    },
}

impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Identity(a), Self::Identity(b)) => same_certificate(a, b),
            (Self::Bundles(a), Self::Bundles(b)) => a.iter().eq(b.iter()),
            _ => false,
        }
    }
}

fn same_certificate(a: &Arc<CertifiedKey>, b: &Arc<CertifiedKey>) -> bool {
    a.cert == b.cert
}
