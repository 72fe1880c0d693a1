//! `discovery.k8s.io/v1 EndpointSlice`: endpoints that no selector finds.

use std::collections::BTreeSet;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    EndpointSlice, Kind, Meta, SERVICE_NAME_LABEL, SliceEndpoint, SlicePort, check,
    error::{At, Fault},
    meta::WireMeta,
    port,
};

/// Kubernetes' own limits.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 100;
const MAX_ADDRESSES: usize = 100;
/// Zones, and nodes, that an endpoint is meant for.
const MAX_HINTS: usize = 8;
/// Greatest priority.
const MAX_PRIORITY: u8 = 7;

/// On an EndpointSlice: 0, which is the default, to 7. Its endpoints are used when no endpoint of a smaller number is ready.
pub const PRIORITY_ANNOTATION: &str = "isthmus.io/priority";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct WireSlice {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: WireMeta,
    address_type: String,
    #[serde(default)]
    endpoints: Vec<WireEndpoint>,
    #[serde(default)]
    ports: Vec<WireSlicePort>,
}

/// The target is accepted and dropped: an address that belongs to a workload is recognised by itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireEndpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: WireConditions,
    hostname: Option<String>,
    node_name: Option<String>,
    zone: Option<String>,
    target_ref: Option<IgnoredAny>,
    #[serde(default)]
    hints: WireHints,
    deprecated_topology: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireHints {
    #[serde(default)]
    for_zones: Vec<WireHint>,
    #[serde(default)]
    for_nodes: Vec<WireHint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHint {
    name: String,
}

/// `appProtocol` is accepted and dropped: the service port's counts.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireSlicePort {
    name: Option<String>,
    port: Option<i64>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

impl WireSlice {
    pub(super) fn parse(self) -> Result<EndpointSlice, Fault> {
        let meta = self.metadata.parse(Kind::EndpointSlice)?;
        let service = meta.labels.get(SERVICE_NAME_LABEL).cloned().ok_or_else(|| {
            At::new("metadata.labels").key(SERVICE_NAME_LABEL).fault("", "is required: it names the service")
        })?;
        check::dns_label(&service, &At::new("metadata.labels").key(SERVICE_NAME_LABEL))?;
        let v4 = match self.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            other => return At::new("addressType").refuse(other, "must be IPv4 or IPv6"),
        };
        let at = At::new("ports");
        at.at_most(&self.ports, MAX_PORTS)?;
        let mut names = BTreeSet::new();
        let mut ports = Vec::new();
        for (i, wire) in self.ports.into_iter().enumerate() {
            let at = at.index(i);
            let port = wire.parse(&at)?;
            if !names.insert(port.name.clone()) {
                return at.field("name").refuse(&port.name, "names two ports");
            }
            ports.push(port);
        }
        let at = At::new("endpoints");
        at.at_most(&self.endpoints, MAX_ENDPOINTS)?;
        let endpoints = self
            .endpoints
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(v4, &at.index(i)))
            .collect::<Result<_, _>>()?;
        let priority = priority(&meta)?;
        Ok(EndpointSlice { meta, service, ports, endpoints, priority })
    }
}

fn priority(meta: &Meta) -> Result<u8, Fault> {
    let Some(text) = meta.annotations.get(PRIORITY_ANNOTATION) else { return Ok(0) };
    let number = text.parse::<u8>().ok().filter(|number| *number <= MAX_PRIORITY);
    number.ok_or_else(|| {
        let at = At::new("metadata").field("annotations").key(PRIORITY_ANNOTATION);
        at.fault(text, format!("must be 0 to {MAX_PRIORITY}"))
    })
}

/// A name that only has to be equal to another one.
fn place(text: Option<String>, at: &At) -> Result<Option<String>, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    check::label_value(&text, at)?;
    Ok(Some(text))
}

impl WireEndpoint {
    fn parse(self, v4: bool, at: &At) -> Result<SliceEndpoint, Fault> {
        if let Some(hostname) = &self.hostname {
            check::dns_label(hostname, &at.field("hostname"))?;
        }
        if let Some(node) = &self.node_name {
            check::dns_subdomain(node, &at.field("nodeName"))?;
        }
        let at_zones = at.field("hints").field("forZones");
        at_zones.at_most(&self.hints.for_zones, MAX_HINTS)?;
        let hints = self.hints.for_zones.into_iter().enumerate();
        let hints = hints.map(|(i, zone)| place(Some(zone.name), &at_zones.index(i).field("name")));
        let hints: Vec<Option<String>> = hints.collect::<Result<_, _>>()?;
        let at_nodes = at.field("hints").field("forNodes");
        at_nodes.at_most(&self.hints.for_nodes, MAX_HINTS)?;
        for (i, node) in self.hints.for_nodes.iter().enumerate() {
            check::dns_subdomain(&node.name, &at_nodes.index(i).field("name"))?;
        }
        let zone = place(self.zone, &at.field("zone"))?;
        let at = at.field("addresses");
        at.at_most(&self.addresses, MAX_ADDRESSES)?;
        if self.addresses.is_empty() {
            return Err(at.missing());
        }
        let mut addresses = Vec::new();
        for (i, text) in self.addresses.iter().enumerate() {
            let at = at.index(i);
            let ip = check::unicast_ip(text, &at)?;
            if ip.is_ipv4() != v4 {
                return at.refuse(text, "is not of the slice's addressType");
            }
            addresses.push(ip);
        }
        Ok(SliceEndpoint {
            addresses,
            ready: self.conditions.ready.unwrap_or(true),
            serving: self.conditions.serving,
            terminating: self.conditions.terminating.unwrap_or(false),
            hostname: self.hostname,
            node: self.node_name,
            zone,
            hint_zones: hints.into_iter().flatten().collect(),
            hint_nodes: self.hints.for_nodes.into_iter().map(|node| node.name).collect(),
        })
    }
}

impl WireSlicePort {
    fn parse(self, at: &At) -> Result<SlicePort, Fault> {
        let name = self.name.unwrap_or_default();
        if !name.is_empty() {
            check::dns_label(&name, &at.field("name"))?;
        }
        let number = self.port.ok_or_else(|| {
            at.field("port").fault("", "is required; a slice for all ports is not supported")
        })?;
        Ok(SlicePort {
            name,
            port: check::port(number, &at.field("port"))?,
            protocol: port::protocol(self.protocol.as_deref(), &at.field("protocol"))?,
        })
    }
}

pub(super) fn render(slice: &EndpointSlice, out: &mut Map<String, Value>) {
    let v6 = slice.endpoints.iter().flat_map(|e| &e.addresses).any(std::net::IpAddr::is_ipv6);
    out.insert("addressType".to_owned(), json!(if v6 { "IPv6" } else { "IPv4" }));
    let endpoints: Vec<Value> = slice.endpoints.iter().map(render_endpoint).collect();
    out.insert("endpoints".to_owned(), Value::Array(endpoints));
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|p| json!({"name": p.name, "port": p.port, "protocol": p.protocol.as_str()}))
        .collect();
    out.insert("ports".to_owned(), Value::Array(ports));
}

fn render_endpoint(endpoint: &SliceEndpoint) -> Value {
    let mut conditions = json!({"ready": endpoint.ready});
    if let Some(serving) = endpoint.serving {
        conditions["serving"] = json!(serving);
    }
    if endpoint.terminating {
        conditions["terminating"] = json!(true);
    }
    let mut out = json!({"addresses": endpoint.addresses, "conditions": conditions});
    let said = [("hostname", &endpoint.hostname), ("nodeName", &endpoint.node), ("zone", &endpoint.zone)];
    for (field, value) in said.into_iter().filter_map(|(field, value)| Some((field, value.as_ref()?))) {
        out[field] = json!(value);
    }
    for (field, names) in [("forZones", &endpoint.hint_zones), ("forNodes", &endpoint.hint_nodes)] {
        if !names.is_empty() {
            out["hints"][field] = names.iter().map(|name| json!({"name": name})).collect();
        }
    }
    out
}
