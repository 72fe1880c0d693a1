//! Typed objects, Kubernetes-shaped: parsed, never merely validated. A value of one of these types obeys its
//! kind's rules.
//!
//! Each kind has one file: private wire structs that refuse unknown fields, the rules that turn them into the
//! public type, and the way back to JSON.

mod audit;
mod check;
mod cilium;
mod cluster_policy;
#[cfg(test)]
mod cluster_policy_tests;
mod coverage;
mod drain;
mod duration;
mod endpoint_slice;
mod error;
mod export_to;
mod exposure;
mod http_filter;
mod http_match;
mod http_route;
mod key;
mod label_query;
mod meta;
mod namespace;
mod network_policy;
mod overflow;
mod parse;
mod port;
mod re2;
mod readiness;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod round_trip_tests;
mod selector;
mod service;
mod service_export;
mod sidecar;
mod types;
mod workload;

pub use audit::AUDIT_ANNOTATION;
pub(crate) use check::is_dns_label;
pub use check::{check_node_labels, is_label_value};
pub use cilium::{
    AMBIGUOUS_PATH, CiliumCidrSet, CiliumEntity, CiliumEntry, CiliumIcmp, CiliumPeers, CiliumPolicy,
    CiliumPort, CiliumRule, CiliumSelector, CiliumService, CiliumSide, HttpRequest, HttpRule, HttpRuleHeader,
};
pub use cluster_policy::{
    ClusterAction, ClusterPeer, ClusterPods, ClusterPolicy, ClusterPort, ClusterRule, ClusterTier,
};
pub use coverage::{COVERAGE, Coverage, Support};
pub use drain::DRAIN_ANNOTATION;
pub use duration::milliseconds;
pub use endpoint_slice::PRIORITY_ANNOTATION;
pub use error::ObjectError;
pub use export_to::{EXPORT_TO_ANNOTATION, Visibility};
pub use exposure::{
    Exposure, FORWARDING_ANNOTATION, Families, FamilyPolicy, IpFamily, NODE_PORTS, REDIRECT_ANNOTATION,
    ServiceType,
};
pub use key::{Kind, NameParts, NamespacedName, ObjectKey};
pub use label_query::LabelQuery;
pub use overflow::OVERFLOW_ANNOTATION;
pub use parse::{MAX_OBJECT_BYTES, MAX_OBJECT_DEPTH};
pub use readiness::Readiness;
pub use selector::matches_labels;
pub use types::*;

/// The label that every namespace carries, so that `namespaceSelector` can name one (Kubernetes 1.21 and later).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The label that ties an EndpointSlice to its service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
