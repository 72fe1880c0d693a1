//! Which services a workload's clients are told of.
//!
//! Visibility (`exportTo`) comes first: of what its namespace may not know, nobody in it is told anything. Of the rest, a
//! Sidecar object says what its proxy gets unasked; the others are there if they are asked for by name.

use super::names;
use crate::{
    compile::{EgressScope, MeshModel, MeshService, MeshWorkload},
    resource::{EgressHost, EgressNamespace, HostPattern, NamespacedName},
};

/// What all clients have in common that are told of the same services. There are as many as there are distinct answers,
/// not as many as there are workloads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The services that are visible everywhere: workloads without a Sidecar, in namespaces that no other service is
    /// visible to.
    Public,
    /// The same and what is visible to this namespace: workloads without a Sidecar.
    Namespace(String),
    /// What a Sidecar lists of what is visible to a namespace.
    Egress {
        /// The workload's.
        namespace: String,
        /// The Sidecar's name, of the same namespace or the root.
        sidecar: NamespacedName,
    },
}

/// How a client is told of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all: its namespace may not know of it.
    Hidden,
    /// If it asks by name.
    Named,
    /// Its cluster and endpoints, because routes of a service in scope lead there; the rest by name.
    Backend,
    /// Unasked.
    Whole,
}

impl Scope {
    /// That of a workload.
    pub fn of(model: &MeshModel, workload: &MeshWorkload) -> Self {
        let namespace = &workload.name.namespace;
        match &workload.egress_scope {
            Some(sidecar) => Self::Egress { namespace: namespace.clone(), sidecar: sidecar.clone() },
            None => Self::visible_to(model, namespace),
        }
    }

    /// What may be asked for by name: everything that is visible to the same workloads.
    pub fn visible(&self, model: &MeshModel) -> Self {
        match self {
            Self::Egress { namespace, .. } => Self::visible_to(model, namespace),
            Self::Public | Self::Namespace(_) => self.clone(),
        }
    }

    fn visible_to(model: &MeshModel, namespace: &str) -> Self {
        match model.index.restricted_to(namespace).next() {
            Some(_) => Self::Namespace(namespace.to_owned()),
            None => Self::Public,
        }
    }

    /// How clients of this scope are told of a service.
    pub fn reach(&self, model: &MeshModel, service: &MeshService) -> Reach {
        let (namespace, sidecar) = match self {
            Self::Public if service.visibility.is_everywhere() => return Reach::Whole,
            Self::Public => return Reach::Hidden,
            Self::Namespace(namespace) if service.visibility.includes(namespace) => return Reach::Whole,
            Self::Namespace(_) => return Reach::Hidden,
            Self::Egress { namespace, sidecar } => (namespace, sidecar),
        };
        if !service.visibility.includes(namespace) {
            return Reach::Hidden;
        }
        // A Sidecar that has gone meanwhile lists nothing.
        let Some(scope) = model.egress_scopes.get(sidecar) else { return Reach::Named };
        let lists = |service: &MeshService| {
            service.visibility.includes(namespace)
                && lists(scope, namespace, &service.name, &model.cluster.mesh_domain)
        };
        if lists(service) {
            return Reach::Whole;
        }
        let mut parents = model.index.routed_to(&service.name).filter_map(|name| model.services.get(name));
        if parents.any(|parent| lists(parent)) { Reach::Backend } else { Reach::Named }
    }
}

fn lists(scope: &EgressScope, own: &str, service: &NamespacedName, mesh_domain: &str) -> bool {
    let mut known_by = None;
    scope.hosts.iter().any(|EgressHost { namespace, pattern }| {
        let right = match namespace {
            EgressNamespace::Any => true,
            EgressNamespace::Own => service.namespace == own,
            EgressNamespace::Named(name) => service.namespace == *name,
        };
        right
            && match pattern {
                HostPattern::Any => true,
                HostPattern::Exact(name) => {
                    known_by.get_or_insert_with(|| dns_names(service, mesh_domain)).contains(name)
                }
                HostPattern::Suffix(suffix) => {
                    let names = known_by.get_or_insert_with(|| dns_names(service, mesh_domain));
                    names.iter().any(|name| name.ends_with(suffix.as_str()))
                }
            }
    })
}

/// What a Sidecar may call a service: its names in the mesh, and its name in Kubernetes, which objects that were
/// written for Istio have.
fn dns_names(service: &NamespacedName, mesh_domain: &str) -> [String; 3] {
    let [short, full] = names::hosts(service, mesh_domain);
    let kubernetes = format!("{short}.svc.cluster.local");
    [short, full, kubernetes]
}
