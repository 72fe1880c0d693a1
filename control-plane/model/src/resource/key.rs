//! Names of objects.

use std::{cmp::Ordering, fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

/// The kinds that the API accepts. The order is the one in which `get all` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `isthmus.io/v1`
    Workload,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `networking.k8s.io/v1`
    NetworkPolicy,
    /// `gateway.networking.k8s.io/v1`
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// `multicluster.x-k8s.io/v1alpha1`
    ServiceExport,
    /// `networking.istio.io/v1`
    Sidecar,
    /// `cilium.io/v2`
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, of the whole cluster
    CiliumClusterwideNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`, of the whole cluster
    ClusterNetworkPolicy,
    /// `v1`: the labels of a namespace
    Namespace,
}

impl Kind {
    /// Every kind, in listing order.
    pub const ALL: [Kind; 11] = [
        Kind::Workload,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::NetworkPolicy,
        Kind::HttpRoute,
        Kind::ServiceExport,
        Kind::Sidecar,
        Kind::CiliumNetworkPolicy,
        Kind::CiliumClusterwideNetworkPolicy,
        Kind::ClusterNetworkPolicy,
        Kind::Namespace,
    ];

    /// As `kind:` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Workload => "Workload",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::HttpRoute => "HTTPRoute",
            Kind::ServiceExport => "ServiceExport",
            Kind::Sidecar => "Sidecar",
            Kind::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Kind::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Kind::Namespace => "Namespace",
        }
    }

    /// As `apiVersion:` spells it.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Workload => "isthmus.io/v1",
            Kind::Service | Kind::Namespace => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::NetworkPolicy => "networking.k8s.io/v1",
            Kind::HttpRoute => "gateway.networking.k8s.io/v1",
            Kind::ServiceExport => "multicluster.x-k8s.io/v1alpha1",
            Kind::Sidecar => "networking.istio.io/v1",
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => "cilium.io/v2",
            Kind::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }

    /// Other versions that are read as the same, older ones or, where the API is young, its next one.
    pub(super) fn older_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Sidecar => &["networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"],
            Kind::ClusterNetworkPolicy => &["policy.networking.k8s.io/v1beta1"],
            Kind::Workload
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::NetworkPolicy
            | Kind::HttpRoute
            | Kind::ServiceExport
            | Kind::CiliumNetworkPolicy
            | Kind::CiliumClusterwideNetworkPolicy
            | Kind::Namespace => &[],
        }
    }

    /// Whether its objects are of no namespace: that of their name is empty.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Kind::CiliumClusterwideNetworkPolicy | Kind::ClusterNetworkPolicy | Kind::Namespace)
    }

    /// Whether its objects say who may talk to whom.
    pub fn is_policy(self) -> bool {
        matches!(
            self,
            Kind::NetworkPolicy
                | Kind::CiliumNetworkPolicy
                | Kind::CiliumClusterwideNetworkPolicy
                | Kind::ClusterNetworkPolicy
        )
    }

    /// The name of an object of this kind: kinds of the whole cluster have no namespace, whatever a person says.
    pub fn name(self, namespace: &str, name: &str) -> NamespacedName {
        NamespacedName::new(if self.is_cluster_scoped() { "" } else { namespace }, name)
    }

    /// Finds a kind by what a person types: the kind, its plural or kubectl's short name, in any case.
    pub fn from_user(text: &str) -> Option<Kind> {
        Some(match text.to_ascii_lowercase().as_str() {
            "workload" | "workloads" | "wl" => Kind::Workload,
            "service" | "services" | "svc" => Kind::Service,
            "endpointslice" | "endpointslices" | "eps" => Kind::EndpointSlice,
            "networkpolicy" | "networkpolicies" | "netpol" => Kind::NetworkPolicy,
            "httproute" | "httproutes" => Kind::HttpRoute,
            "serviceexport" | "serviceexports" | "svcexport" | "svcex" => Kind::ServiceExport,
            "sidecar" | "sidecars" => Kind::Sidecar,
            "ciliumnetworkpolicy" | "ciliumnetworkpolicies" | "cnp" | "ciliumnp" => Kind::CiliumNetworkPolicy,
            "ciliumclusterwidenetworkpolicy" | "ciliumclusterwidenetworkpolicies" | "ccnp" => {
                Kind::CiliumClusterwideNetworkPolicy
            }
            "clusternetworkpolicy" | "clusternetworkpolicies" => Kind::ClusterNetworkPolicy,
            "namespace" | "namespaces" | "ns" => Kind::Namespace,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one thing in one namespace: a workload or a service. The namespace is empty for what is of the whole cluster. Shared, not copied, when it is cloned: every index
/// of the mesh is keyed by it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamespacedName(Arc<NameParts>);

/// What a [`NamespacedName`] consists of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameParts {
    /// DNS label.
    pub namespace: String,
    /// DNS label.
    pub name: String,
}

impl Deref for NamespacedName {
    type Target = NameParts;
    fn deref(&self) -> &NameParts {
        &self.0
    }
}

impl Ord for NamespacedName {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for NamespacedName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl NamespacedName {
    /// Joins the two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(NameParts { namespace: namespace.into(), name: name.into() }))
    }

    /// Splits `<namespace>/<name>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Self::new(namespace, name))
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl TryFrom<String> for NamespacedName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if !text.is_empty() && !text.contains('/') {
            return Ok(Self::new("", text));
        }
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not <namespace>/<name>"))
    }
}

impl From<NamespacedName> for String {
    fn from(name: NamespacedName) -> Self {
        name.to_string()
    }
}

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: NamespacedName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str().to_ascii_lowercase(), self.name)
    }
}
