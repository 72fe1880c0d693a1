//! From JSON to an [`Object`] and back.

use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    Kind, Meta, Object, ObjectError, audit,
    cilium::{self, WireCilium},
    cluster_policy::{self, WireClusterPolicy},
    drain,
    endpoint_slice::{self, WireSlice},
    error::{At, Fault, shown},
    exposure::{self, WireStatus},
    http_route::{self, WireRoute},
    meta::{DEFAULT_NAMESPACE, WireMeta},
    namespace::{self, WireNamespace},
    network_policy::{self, WirePolicy},
    service::{self, WireService},
    service_export::{self, WireExport},
    sidecar::{self, WireSidecar},
    workload::{self, WireWorkload},
};

/// Largest object, as compact JSON, in bytes.
pub const MAX_OBJECT_BYTES: usize = 256 * 1024;
/// Deepest nesting of an object.
pub const MAX_OBJECT_DEPTH: usize = 32;

impl Object {
    /// Parses one object.
    ///
    /// # Errors
    /// The first rule that it breaks, with the path and value of the field.
    pub fn parse(value: &Value) -> Result<Self, ObjectError> {
        let name = describe(value);
        parse(value).map_err(|fault| fault.of(name))
    }

    /// The canonical Kubernetes form: `parse` of it gives an equal object. Defaults are written out.
    pub fn to_json(&self) -> Value {
        let kind = self.kind();
        let mut out = Map::new();
        out.insert("apiVersion".to_owned(), json!(kind.api_version()));
        out.insert("kind".to_owned(), json!(kind.as_str()));
        out.insert("metadata".to_owned(), self.meta().to_json());
        match self {
            Object::Workload(o) => drop(out.insert("spec".to_owned(), workload::render(o))),
            Object::Service(o) => {
                out.insert("spec".to_owned(), service::render(o));
                if let Some(status) = exposure::render_status(&o.exposure) {
                    out.insert("status".to_owned(), status);
                }
            }
            Object::EndpointSlice(o) => endpoint_slice::render(o, &mut out),
            Object::NetworkPolicy(o) => drop(out.insert("spec".to_owned(), network_policy::render(o))),
            Object::HttpRoute(o) => drop(out.insert("spec".to_owned(), http_route::render(o))),
            Object::ServiceExport(_) | Object::Namespace(_) => {}
            Object::Sidecar(o) => drop(out.insert("spec".to_owned(), sidecar::render(o))),
            Object::CiliumNetworkPolicy(o) | Object::CiliumClusterwideNetworkPolicy(o) => {
                cilium::render(o, &mut out);
            }
            Object::ClusterNetworkPolicy(o) => drop(out.insert("spec".to_owned(), cluster_policy::render(o))),
        }
        Value::Object(out)
    }
}

/// What the kinds with a `spec` have in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound = "S: Deserialize<'de>")]
#[allow(dead_code)]
struct Envelope<S> {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: WireMeta,
    spec: Option<S>,
    status: Option<IgnoredAny>,
}

fn parse(value: &Value) -> Result<Object, Fault> {
    let root = At::new("");
    let value = without_nulls(value, 0)?;
    let Value::Object(map) = &value else {
        return root.refuse("", "must be an object with apiVersion, kind and metadata");
    };
    let size = serde_json::to_vec(&value).map_or(usize::MAX, |bytes| bytes.len());
    if size > MAX_OBJECT_BYTES {
        return root
            .refuse("", format!("is {size} bytes as JSON, but at most {MAX_OBJECT_BYTES} are allowed"));
    }
    let kind = kind_of(map)?;
    let object = match kind {
        Kind::Workload => {
            let (meta, spec) = envelope::<WireWorkload>(&value, kind)?;
            Object::Workload(spec.unwrap_or_default().parse(meta)?)
        }
        Kind::Service => {
            let (meta, spec) = envelope::<WireService>(&value, kind)?;
            // Ours to write but for the addresses of load balancers; what can't be read of it says nothing.
            let status = map.get("status").and_then(|status| WireStatus::deserialize(status).ok());
            Object::Service(required(spec)?.parse(meta, status)?)
        }
        Kind::EndpointSlice => Object::EndpointSlice(read::<WireSlice>(&value)?.parse()?),
        Kind::NetworkPolicy => {
            let (meta, spec) = envelope::<WirePolicy>(&value, kind)?;
            Object::NetworkPolicy(required(spec)?.parse(meta)?)
        }
        Kind::HttpRoute => {
            let (meta, spec) = envelope::<WireRoute>(&value, kind)?;
            Object::HttpRoute(required(spec)?.parse(meta)?)
        }
        Kind::ServiceExport => {
            let (meta, spec) = envelope::<WireExport>(&value, kind)?;
            Object::ServiceExport(service_export::parse(spec, meta)?)
        }
        Kind::Sidecar => {
            let (meta, spec) = envelope::<WireSidecar>(&value, kind)?;
            Object::Sidecar(required(spec)?.parse(meta)?)
        }
        Kind::CiliumNetworkPolicy => Object::CiliumNetworkPolicy(read::<WireCilium>(&value)?.parse(kind)?),
        Kind::CiliumClusterwideNetworkPolicy => {
            Object::CiliumClusterwideNetworkPolicy(read::<WireCilium>(&value)?.parse(kind)?)
        }
        Kind::ClusterNetworkPolicy => {
            let (meta, spec) = envelope::<WireClusterPolicy>(&value, kind)?;
            Object::ClusterNetworkPolicy(required(spec)?.parse(meta)?)
        }
        Kind::Namespace => {
            let (meta, _) = envelope::<WireNamespace>(&value, kind)?;
            Object::Namespace(namespace::parse(meta)?)
        }
    };
    if kind.is_policy() || kind == Kind::Workload {
        audit::check(object.meta())?;
    }
    if kind == Kind::Workload {
        drain::check(object.meta())?;
    }
    Ok(object)
}

fn required<S>(spec: Option<S>) -> Result<S, Fault> {
    spec.ok_or_else(|| At::new("spec").missing())
}

fn envelope<S: DeserializeOwned>(value: &Value, kind: Kind) -> Result<(Meta, Option<S>), Fault> {
    let envelope: Envelope<S> = read(value)?;
    Ok((envelope.metadata.parse(kind)?, envelope.spec))
}

/// Deserializes; an error names the path and what stands there.
fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        use serde_path_to_error::Segment;
        let found = error.path().iter().try_fold(value, |value, segment| match segment {
            Segment::Seq { index } => value.get(*index),
            Segment::Map { key } => value.get(key),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        let value = match found {
            None | Some(Value::Object(_) | Value::Array(_) | Value::Null) => String::new(),
            Some(Value::String(text)) => shown(text),
            Some(scalar) => shown(&scalar.to_string()),
        };
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        // The only Rust type that serde's messages would name.
        let reason = error.into_inner().to_string().replace("expected i64", "expected a whole number");
        Fault { path, value, reason }
    })
}

/// Drops map entries that are null: Kubernetes reads them as absent, and its own printers write
/// `creationTimestamp: null`.
fn without_nulls(value: &Value, depth: usize) -> Result<Value, Fault> {
    if depth > MAX_OBJECT_DEPTH {
        return At::new("").refuse("", format!("is nested deeper than {MAX_OBJECT_DEPTH} levels"));
    }
    Ok(match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| Ok((key.clone(), without_nulls(value, depth + 1)?)))
                .collect::<Result<_, Fault>>()?,
        ),
        Value::Array(list) => {
            Value::Array(list.iter().map(|value| without_nulls(value, depth + 1)).collect::<Result<_, _>>()?)
        }
        scalar => scalar.clone(),
    })
}

fn kind_of(map: &Map<String, Value>) -> Result<Kind, Fault> {
    let text = |field: &str| match map.get(field) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => At::new(field).refuse("", "must be a string"),
        None => Err(At::new(field).missing()),
    };
    let api_version = text("apiVersion")?;
    let kind = text("kind")?;
    let at = At::new("kind");
    let Some(known) = Kind::ALL.into_iter().find(|k| k.as_str() == kind) else {
        let near = Kind::ALL.into_iter().find(|k| near_miss(k.as_str(), kind));
        let hint = near.map(|k| format!("; did you mean {k}?")).unwrap_or_default();
        return at.refuse(kind, format!("is not a supported kind{hint}; supported are {}", supported()));
    };
    if known.api_version() != api_version && !known.older_versions().contains(&api_version) {
        return At::new("apiVersion")
            .refuse(api_version, format!("is not supported for {known}; write {}", known.api_version()));
    }
    Ok(known)
}

fn supported() -> String {
    Kind::ALL.map(|k| format!("{} {k}", k.api_version())).join(", ")
}

/// Equal but for case, a plural s, or at most two edits.
fn near_miss(known: &str, given: &str) -> bool {
    let (known, given) = (known.to_ascii_lowercase(), given.to_ascii_lowercase());
    given.len() <= known.len() + 2 && edits(known.as_bytes(), given.as_bytes()) <= 2
}

/// Levenshtein distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// `networkpolicy/shop/x`, as far as the value tells.
fn describe(value: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|s| !s.is_empty()).map(shown);
    let kind = text(value.get("kind")).map_or_else(|| "object".to_owned(), |k| k.to_ascii_lowercase());
    let meta = value.get("metadata");
    match text(meta.and_then(|m| m.get("name"))) {
        Some(name) => {
            let namespace = text(meta.and_then(|m| m.get("namespace")));
            let scoped = Kind::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(&kind));
            if scoped.is_some_and(Kind::is_cluster_scoped) {
                return format!("{kind}/{name}");
            }
            format!("{kind}/{}/{name}", namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE))
        }
        None => kind,
    }
}
