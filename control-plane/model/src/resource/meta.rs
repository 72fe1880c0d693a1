//! `metadata`.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    Kind, Labels, Meta, NamespacedName, check,
    error::{At, Fault},
};

/// What kubectl assumes as well.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// Fields below `labels` are filled in by servers and controllers: they are accepted and dropped, so that
/// what `get -o yaml` prints can be applied again.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct WireMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    labels: Labels,
    uid: Option<IgnoredAny>,
    creation_timestamp: Option<IgnoredAny>,
    deletion_timestamp: Option<IgnoredAny>,
    deletion_grace_period_seconds: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
}

impl WireMeta {
    pub(super) fn parse(self, kind: Kind) -> Result<Meta, Fault> {
        let at = At::new("metadata");
        let name = self.name.ok_or_else(|| at.field("name").missing())?;
        // A service's name becomes part of host names and SNI: one label.
        match kind {
            Kind::Service | Kind::ServiceExport | Kind::Namespace => {
                check::dns_label(&name, &at.field("name"))?
            }
            Kind::Workload
            | Kind::EndpointSlice
            | Kind::NetworkPolicy
            | Kind::HttpRoute
            | Kind::Sidecar
            | Kind::CiliumNetworkPolicy
            | Kind::CiliumClusterwideNetworkPolicy
            | Kind::ClusterNetworkPolicy => {
                check::dns_subdomain(&name, &at.field("name"))?;
            }
        }
        let at_namespace = at.field("namespace");
        let namespace = match self.namespace {
            Some(namespace) if kind.is_cluster_scoped() && !namespace.is_empty() => {
                return at_namespace
                    .refuse(namespace, format!("is not supported: a {kind} is of the whole cluster"));
            }
            _ if kind.is_cluster_scoped() => String::new(),
            namespace => {
                let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
                check::dns_label(&namespace, &at_namespace)?;
                namespace
            }
        };
        check::labels(&self.labels, &at.field("labels"))?;
        check::annotations(&self.annotations, &at.field("annotations"))?;
        let resource_version = match self.resource_version.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                at.field("resourceVersion")
                    .fault(text, "must be a revision of this cluster, a decimal number")
            })?),
        };
        Ok(Meta {
            name: NamespacedName::new(namespace, name),
            labels: self.labels,
            annotations: self.annotations,
            resource_version,
        })
    }
}

impl Meta {
    pub(super) fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("name".to_owned(), json!(self.name.name));
        if !self.name.namespace.is_empty() {
            out.insert("namespace".to_owned(), json!(self.name.namespace));
        }
        if !self.labels.is_empty() {
            out.insert("labels".to_owned(), json!(self.labels));
        }
        if !self.annotations.is_empty() {
            out.insert("annotations".to_owned(), json!(self.annotations));
        }
        if let Some(version) = self.resource_version {
            out.insert("resourceVersion".to_owned(), json!(version.to_string()));
        }
        Value::Object(out)
    }
}
