//! `gateway.networking.k8s.io/v1 HTTPRoute`, for mesh traffic (GAMMA, GEP-1294): its parents are Services.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    BackendRef, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, Meta, NamespacedName, ParentRef,
    PathMatch, check, duration,
    error::{At, Fault},
    http_filter::{self, WireFilter},
    http_match::{self, WireMatch},
};

/// The Gateway API's own limits.
const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_ALL_MATCHES: usize = 128;
const MAX_BACKENDS: usize = 16;
const MAX_FILTERS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;
const DEFAULT_WEIGHT: i64 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireRoute {
    #[serde(default)]
    parent_refs: Vec<WireParent>,
    #[serde(default)]
    hostnames: Vec<String>,
    #[serde(default)]
    rules: Vec<WireRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireParent {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    section_name: Option<IgnoredAny>,
}

/// A rule's `name` is accepted and dropped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<WireMatch>,
    #[serde(default)]
    filters: Vec<WireFilter>,
    #[serde(default)]
    backend_refs: Vec<WireBackend>,
    #[serde(default)]
    timeouts: WireTimeouts,
    retry: Option<IgnoredAny>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireTimeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireBackend {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    weight: Option<i64>,
    #[serde(default)]
    filters: Vec<IgnoredAny>,
}

impl WireRoute {
    pub(super) fn parse(self, meta: Meta) -> Result<HttpRoute, Fault> {
        let at = At::new("spec");
        let namespace = meta.name.namespace.clone();
        let at_parents = at.field("parentRefs");
        at_parents.at_most(&self.parent_refs, MAX_PARENTS)?;
        if self.parent_refs.is_empty() {
            return at_parents.refuse("", "is required: it names the Services that the route is for");
        }
        let parents: Vec<ParentRef> = self
            .parent_refs
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(&namespace, &at_parents.index(i)))
            .collect::<Result<_, _>>()?;
        for (i, parent) in parents.iter().enumerate() {
            if parents[..i].contains(parent) {
                return at_parents.index(i).refuse(&parent.service, "is listed twice");
            }
        }
        let at_hosts = at.field("hostnames");
        at_hosts.at_most(&self.hostnames, MAX_HOSTNAMES)?;
        for (i, host) in self.hostnames.iter().enumerate() {
            hostname(host, &at_hosts.index(i))?;
        }
        let at_rules = at.field("rules");
        at_rules.at_most(&self.rules, MAX_RULES)?;
        if self.rules.iter().map(|rule| rule.matches.len()).sum::<usize>() > MAX_ALL_MATCHES {
            return at_rules.refuse("", format!("have more than {MAX_ALL_MATCHES} matches together"));
        }
        let mut rules: Vec<HttpRouteRule> = self
            .rules
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(&namespace, &at_rules.index(i)))
            .collect::<Result<_, _>>()?;
        if rules.is_empty() {
            // The API's default: one rule that matches everything and forwards nowhere.
            rules.push(HttpRouteRule {
                matches: vec![match_everything()],
                filters: Vec::new(),
                backends: Vec::new(),
                request_timeout_ms: None,
                backend_timeout_ms: None,
            });
        }
        Ok(HttpRoute { meta, parents, hostnames: self.hostnames, rules })
    }
}

fn match_everything() -> HttpRouteMatch {
    HttpRouteMatch {
        path: PathMatch::Prefix("/".to_owned()),
        headers: Vec::new(),
        query: Vec::new(),
        method: None,
    }
}

fn hostname(host: &str, at: &At) -> Result<(), Fault> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if check::is_dns_subdomain(name) && host.parse::<std::net::IpAddr>().is_err() {
        return Ok(());
    }
    at.refuse(host, "must be a DNS name in lower case, or *.<DNS name>; no IP address, no port")
}

/// A reference that must be to a core Service. An empty `kind` means the default of the referring field.
fn must_be_service(group: Option<&str>, kind: Option<&str>, default: &str, at: &At) -> Result<(), Fault> {
    let kind = kind.unwrap_or(default);
    if kind != "Service" {
        return at.field("kind").refuse(kind, "is not supported; only Service is");
    }
    match group {
        // Some tools write the core group's name, which is the empty string, as "core".
        None | Some("" | "core") => Ok(()),
        Some(other) => at.field("group").refuse(other, "must be \"\", the group of Service"),
    }
}

impl WireParent {
    fn parse(self, route_namespace: &str, at: &At) -> Result<ParentRef, Fault> {
        must_be_service(self.group.as_deref(), self.kind.as_deref(), "Gateway", at)?;
        at.unsupported(&[("sectionName", self.section_name.is_some())])?;
        check::dns_label(&self.name, &at.field("name"))?;
        let namespace = self.namespace.unwrap_or_else(|| route_namespace.to_owned());
        if namespace != route_namespace {
            // A "consumer route" would hold for callers from its own namespace only.
            return at
                .field("namespace")
                .refuse(namespace, "is not supported: a route must be in its Service's namespace");
        }
        Ok(ParentRef {
            service: NamespacedName::new(namespace, self.name),
            port: self.port.map(|port| check::port(port, &at.field("port"))).transpose()?,
        })
    }
}

impl WireRule {
    fn parse(self, route_namespace: &str, at: &At) -> Result<HttpRouteRule, Fault> {
        at.unsupported(&[
            ("retry", self.retry.is_some()),
            ("sessionPersistence", self.session_persistence.is_some()),
        ])?;
        let at_matches = at.field("matches");
        at_matches.at_most(&self.matches, MAX_MATCHES)?;
        let mut matches: Vec<HttpRouteMatch> = self
            .matches
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(&at_matches.index(i)))
            .collect::<Result<_, _>>()?;
        if matches.is_empty() {
            matches.push(match_everything());
        }
        let at_filters = at.field("filters");
        at_filters.at_most(&self.filters, MAX_FILTERS)?;
        let mut filters: Vec<HttpRouteFilter> = Vec::new();
        for (i, wire) in self.filters.into_iter().enumerate() {
            let at = at_filters.index(i);
            let filter = wire.parse(&at)?;
            if filters.iter().any(|f| std::mem::discriminant(f) == std::mem::discriminant(&filter)) {
                return at.field("type").refuse("", "may be given once in a rule");
            }
            filters.push(filter);
        }
        let at_backends = at.field("backendRefs");
        at_backends.at_most(&self.backend_refs, MAX_BACKENDS)?;
        let backends = self
            .backend_refs
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(route_namespace, &at_backends.index(i)))
            .collect::<Result<_, _>>()?;
        let at = at.field("timeouts");
        let request_timeout_ms = timeout(self.timeouts.request, &at.field("request"))?;
        let backend_timeout_ms = timeout(self.timeouts.backend_request, &at.field("backendRequest"))?;
        if let (Some(request), Some(backend)) = (request_timeout_ms, backend_timeout_ms)
            && backend > request
        {
            return at.field("backendRequest").refuse(duration::render(backend), "must not exceed request");
        }
        Ok(HttpRouteRule { matches, filters, backends, request_timeout_ms, backend_timeout_ms })
    }
}

fn timeout(text: Option<String>, at: &At) -> Result<Option<u64>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match duration::parse(&text, at)? {
        0 => at.refuse(text, "must be more than zero; leave it out for no limit"),
        ms => Ok(Some(ms)),
    }
}

impl WireBackend {
    fn parse(self, route_namespace: &str, at: &At) -> Result<BackendRef, Fault> {
        must_be_service(self.group.as_deref(), self.kind.as_deref(), "Service", at)?;
        if !self.filters.is_empty() {
            return at.field("filters").refuse("", "is not supported on a backend; put it on the rule");
        }
        check::dns_label(&self.name, &at.field("name"))?;
        let namespace = self.namespace.unwrap_or_else(|| route_namespace.to_owned());
        if namespace != route_namespace {
            return at.field("namespace").refuse(
                namespace,
                "needs a ReferenceGrant, which is not supported: use a Service of the route's own namespace",
            );
        }
        let port = self.port.ok_or_else(|| at.field("port").missing())?;
        let weight = self.weight.unwrap_or(DEFAULT_WEIGHT);
        let weight = u32::try_from(weight)
            .ok()
            .filter(|w| i64::from(*w) <= MAX_WEIGHT)
            .ok_or_else(|| at.field("weight").fault(weight, format!("must be 0 to {MAX_WEIGHT}")))?;
        Ok(BackendRef {
            service: NamespacedName::new(namespace, self.name),
            port: check::port(port, &at.field("port"))?,
            weight,
        })
    }
}

pub(super) fn render(route: &HttpRoute) -> Value {
    let mut out = Map::new();
    let parents: Vec<Value> = route
        .parents
        .iter()
        .map(|parent| {
            let mut out = json!({
                "group": "", "kind": "Service",
                "namespace": parent.service.namespace, "name": parent.service.name,
            });
            if let Some(port) = parent.port {
                out["port"] = json!(port);
            }
            out
        })
        .collect();
    out.insert("parentRefs".to_owned(), Value::Array(parents));
    if !route.hostnames.is_empty() {
        out.insert("hostnames".to_owned(), json!(route.hostnames));
    }
    out.insert("rules".to_owned(), route.rules.iter().map(render_rule).collect());
    Value::Object(out)
}

fn render_rule(rule: &HttpRouteRule) -> Value {
    let mut out = Map::new();
    out.insert("matches".to_owned(), rule.matches.iter().map(http_match::render).collect());
    if !rule.filters.is_empty() {
        out.insert("filters".to_owned(), rule.filters.iter().map(http_filter::render).collect());
    }
    if !rule.backends.is_empty() {
        out.insert("backendRefs".to_owned(), rule.backends.iter().map(render_backend).collect());
    }
    let mut timeouts = Map::new();
    for (field, ms) in [("request", rule.request_timeout_ms), ("backendRequest", rule.backend_timeout_ms)] {
        if let Some(ms) = ms {
            timeouts.insert(field.to_owned(), json!(duration::render(ms)));
        }
    }
    if !timeouts.is_empty() {
        out.insert("timeouts".to_owned(), Value::Object(timeouts));
    }
    Value::Object(out)
}

fn render_backend(backend: &BackendRef) -> Value {
    json!({
        "group": "", "kind": "Service",
        "namespace": backend.service.namespace, "name": backend.service.name,
        "port": backend.port, "weight": backend.weight,
    })
}
