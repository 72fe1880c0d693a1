//! The plain types that the parsers in this folder yield.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CiliumPolicy, ClusterPolicy, Exposure, Kind, NamespacedName, ObjectKey, Readiness, Visibility};

/// Labels, and the map form of a selector.
pub type Labels = BTreeMap<String, String>;

/// What every object carries (Kubernetes `ObjectMeta`, the part that a user writes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Namespace and name, DNS labels (names: DNS subdomains).
    pub name: NamespacedName,
    /// Qualified keys, values of at most 63 characters.
    pub labels: Labels,
    /// Free text, at most 256 KiB together.
    pub annotations: BTreeMap<String, String>,
    /// Compare-and-set: when given, the write is refused unless the stored object has this revision.
    pub resource_version: Option<u64>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[allow(missing_docs)]
pub enum Object {
    Workload(Workload),
    Service(Service),
    EndpointSlice(EndpointSlice),
    NetworkPolicy(NetworkPolicy),
    #[serde(rename = "HTTPRoute")]
    HttpRoute(HttpRoute),
    ServiceExport(ServiceExport),
    Sidecar(Sidecar),
    CiliumNetworkPolicy(CiliumPolicy),
    CiliumClusterwideNetworkPolicy(CiliumPolicy),
    ClusterNetworkPolicy(ClusterPolicy),
    Namespace(Namespace),
}

impl Object {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Workload(_) => Kind::Workload,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::NetworkPolicy(_) => Kind::NetworkPolicy,
            Object::HttpRoute(_) => Kind::HttpRoute,
            Object::ServiceExport(_) => Kind::ServiceExport,
            Object::Sidecar(_) => Kind::Sidecar,
            Object::CiliumNetworkPolicy(_) => Kind::CiliumNetworkPolicy,
            Object::CiliumClusterwideNetworkPolicy(_) => Kind::CiliumClusterwideNetworkPolicy,
            Object::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
            Object::Namespace(_) => Kind::Namespace,
        }
    }

    /// The object's metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Object::Workload(o) => &o.meta,
            Object::Service(o) => &o.meta,
            Object::EndpointSlice(o) => &o.meta,
            Object::NetworkPolicy(o) => &o.meta,
            Object::HttpRoute(o) => &o.meta,
            Object::ServiceExport(o) => &o.meta,
            Object::Sidecar(o) => &o.meta,
            Object::CiliumNetworkPolicy(o) | Object::CiliumClusterwideNetworkPolicy(o) => &o.meta,
            Object::ClusterNetworkPolicy(o) => &o.meta,
            Object::Namespace(o) => &o.meta,
        }
    }

    /// For those who change it.
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Object::Workload(o) => &mut o.meta,
            Object::Service(o) => &mut o.meta,
            Object::EndpointSlice(o) => &mut o.meta,
            Object::NetworkPolicy(o) => &mut o.meta,
            Object::HttpRoute(o) => &mut o.meta,
            Object::ServiceExport(o) => &mut o.meta,
            Object::Sidecar(o) => &mut o.meta,
            Object::CiliumNetworkPolicy(o) | Object::CiliumClusterwideNetworkPolicy(o) => &mut o.meta,
            Object::ClusterNetworkPolicy(o) => &mut o.meta,
            Object::Namespace(o) => &mut o.meta,
        }
    }

    /// The object's name in the store.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: self.meta().name.clone() }
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A port by number or by the name that a workload gives it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// 1 to 65535
    Number(u16),
    /// IANA service name, at most 15 characters.
    Name(String),
}

/// Which data plane stands beside a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// L3/L4 only, in the kernel.
    #[default]
    None,
    /// A proxy (ours or Envoy) in the workload's network namespace.
    Sidecar,
    /// The workload is an east-west gateway: a proxy on the node that forwards by SNI.
    Gateway,
}

/// What HTTP version or other protocol a port speaks (Kubernetes `appProtocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum AppProtocol {
    #[default]
    Http,
    Http2,
    Grpc,
    Tcp,
}

/// `isthmus.io/v1 Workload`: a pod, VM or process that is to have an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Workload {
    pub meta: Meta,
    /// `default` when the user says nothing.
    pub service_account: String,
    pub proxy: ProxyMode,
    pub ports: Vec<WorkloadPort>,
    /// A fixed address, for workloads that no CNI call creates (gateways, VMs).
    pub address: Option<IpAddr>,
    /// None: it is ready as soon as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// A port that a workload serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WorkloadPort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    /// None: what the services that target this port say.
    #[serde(default)]
    pub app_protocol: Option<AppProtocol>,
    /// The port of the workload's node that leads here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<HostPort>,
}

/// `hostPort` and `hostIP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HostPort {
    pub port: u16,
    /// None: every address of the node.
    pub ip: Option<IpAddr>,
}

/// `v1 Service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    #[allow(missing_docs)]
    pub meta: Meta,
    /// Empty: endpoints come from EndpointSlices only.
    pub selector: Labels,
    #[allow(missing_docs)]
    pub ports: Vec<ServicePort>,
    /// A virtual IP that the user asks for; otherwise `apply` allocates one.
    pub cluster_ip: Option<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// From the annotation `networking.istio.io/exportTo`.
    #[serde(default, skip_serializing_if = "Visibility::is_everywhere")]
    pub visibility: Visibility,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Exposure::is_default")]
    pub exposure: Exposure,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ServicePort {
    /// Empty only if the service has a single port.
    pub name: String,
    pub port: u16,
    pub target_port: PortRef,
    pub protocol: Protocol,
    pub app_protocol: AppProtocol,
    /// A requested one; otherwise `apply` allocates one where the service has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// `discovery.k8s.io/v1 EndpointSlice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct EndpointSlice {
    pub meta: Meta,
    /// From the label `kubernetes.io/service-name`, same namespace.
    pub service: String,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
    /// From the annotation `isthmus.io/priority`: endpoints of a greater one are for when those before have none that is ready.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u8,
}

impl EndpointSlice {
    /// Whether it lists endpoints of this service.
    pub fn is_of(&self, service: &NamespacedName) -> bool {
        self.service == service.name && self.meta.name.namespace == service.namespace
    }
}

fn is_zero(priority: &u8) -> bool {
    *priority == 0
}

/// A port of a slice, by the service port's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SlicePort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true when absent.
    pub ready: bool,
    /// `conditions.serving`, as `ready` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// `conditions.terminating`.
    #[serde(default)]
    pub terminating: bool,
    /// DNS label, below the name of a headless service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `hints.forZones`: whose clients are to have it; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hint_zones: Vec<String>,
    /// `hints.forNodes`: the same by node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hint_nodes: Vec<String>,
}

impl SliceEndpoint {
    /// One that is what every endpoint is unless it says otherwise.
    pub fn plain(addresses: Vec<IpAddr>, ready: bool) -> Self {
        Self {
            addresses,
            ready,
            serving: None,
            terminating: false,
            hostname: None,
            node: None,
            zone: None,
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
        }
    }
}

/// `matchLabels` and `matchExpressions`, together (Kubernetes `LabelSelector`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<LabelExpression>,
}

/// One `matchExpressions` entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LabelExpression {
    pub key: String,
    pub operator: LabelOperator,
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// `networking.k8s.io/v1 NetworkPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NetworkPolicy {
    pub meta: Meta,
    pub pod_selector: LabelSelector,
    /// From `policyTypes`, or by Kubernetes' rule when absent: ingress always, egress if it has egress rules.
    pub ingress_selected: bool,
    pub egress_selected: bool,
    pub ingress: Vec<NetworkPolicyRule>,
    pub egress: Vec<NetworkPolicyRule>,
}

/// One `ingress` or `egress` entry. An empty list of peers or ports means any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NetworkPolicyRule {
    pub peers: Vec<NetworkPolicyPeer>,
    pub ports: Vec<NetworkPolicyPort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum NetworkPolicyPeer {
    /// At least one of the two is there. Without `namespace` the policy's own namespace is meant.
    Pods {
        pod: Option<LabelSelector>,
        namespace: Option<LabelSelector>,
    },
    IpBlock {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NetworkPolicyPort {
    pub protocol: Protocol,
    /// None: all ports of the protocol.
    pub port: Option<PortRef>,
    /// Inclusive; only with a numeric port.
    pub end_port: Option<u16>,
}

/// `gateway.networking.k8s.io/v1 HTTPRoute`, attached to Services (GAMMA).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HttpRoute {
    pub meta: Meta,
    pub parents: Vec<ParentRef>,
    /// Exact or `*.suffix`; empty: any.
    pub hostnames: Vec<String>,
    pub rules: Vec<HttpRouteRule>,
}

/// A Service that the route applies to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ParentRef {
    pub service: NamespacedName,
    /// None: every port of the service.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HttpRouteRule {
    /// Alternatives; never empty (the default is the prefix `/`).
    pub matches: Vec<HttpRouteMatch>,
    pub filters: Vec<HttpRouteFilter>,
    pub backends: Vec<BackendRef>,
    /// Milliseconds; None: no limit. 0 is refused.
    pub request_timeout_ms: Option<u64>,
    pub backend_timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HttpRouteMatch {
    pub path: PathMatch,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<HeaderMatch>,
    pub method: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum PathMatch {
    Exact(String),
    /// By whole path elements: `/abc` matches `/abc` and `/abc/x`, not `/abcd`.
    Prefix(String),
    Regex(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HeaderMatch {
    /// Header names in lower case; query parameters as they are.
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ValueMatch {
    Exact(String),
    Regex(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HttpRouteFilter {
    RequestHeaders { set: Vec<(String, String)>, add: Vec<(String, String)>, remove: Vec<String> },
    ResponseHeaders { set: Vec<(String, String)>, add: Vec<(String, String)>, remove: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BackendRef {
    pub service: NamespacedName,
    pub port: u16,
    /// 0 to 1,000,000; 1 when absent.
    pub weight: u32,
}

/// `multicluster.x-k8s.io/v1alpha1 ServiceExport`: the service of the same name is offered to peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ServiceExport {
    pub meta: Meta,
}

/// `v1 Namespace`: its labels, for policies to select by. Objects may be of a namespace that nobody declared: that has
/// one label, its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Namespace {
    /// With [`NAMESPACE_NAME_LABEL`](super::NAMESPACE_NAME_LABEL) among its labels.
    pub meta: Meta,
}

/// `networking.istio.io Sidecar`: which services the proxies of workloads are told of without having asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Sidecar {
    pub meta: Meta,
    /// Empty: every workload of the namespace that no other Sidecar selects.
    pub workloads: Labels,
    /// Any of them; empty: no service at all (`~/*`).
    pub hosts: Vec<EgressHost>,
}

/// `<namespace>/<DNS name>` of `egress[].hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct EgressHost {
    pub namespace: EgressNamespace,
    pub pattern: HostPattern,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum EgressNamespace {
    /// `.`: that of the workload, also where a Sidecar of the root namespace says it.
    Own,
    Any,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HostPattern {
    Any,
    /// In full, lower case.
    Exact(String),
    /// Begins with the dot.
    Suffix(String),
}

impl fmt::Display for EgressHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = match &self.namespace {
            EgressNamespace::Own => ".",
            EgressNamespace::Any => "*",
            EgressNamespace::Named(name) => name,
        };
        match &self.pattern {
            HostPattern::Any => write!(f, "{namespace}/*"),
            HostPattern::Exact(name) => write!(f, "{namespace}/{name}"),
            HostPattern::Suffix(suffix) => write!(f, "{namespace}/*{suffix}"),
        }
    }
}
