//! `discovery.k8s.io/v1 EndpointSlice`: endpoints that no selector finds.

use std::collections::BTreeSet;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    EndpointSlice, Kind, SERVICE_NAME_LABEL, SliceEndpoint, SlicePort, check,
    error::{At, Fault},
    meta::WireMeta,
    port,
};

/// Kubernetes' own limits.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 100;
const MAX_ADDRESSES: usize = 100;

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

/// What places an endpoint (node, zone, target) is accepted and dropped: an address that belongs to a workload
/// is recognised by itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireEndpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: WireConditions,
    hostname: Option<IgnoredAny>,
    node_name: Option<IgnoredAny>,
    zone: Option<IgnoredAny>,
    target_ref: Option<IgnoredAny>,
    hints: Option<IgnoredAny>,
    deprecated_topology: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
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
        Ok(EndpointSlice { meta, service, ports, endpoints })
    }
}

impl WireEndpoint {
    fn parse(self, v4: bool, at: &At) -> Result<SliceEndpoint, Fault> {
        let ready = self.conditions.ready.unwrap_or(true);
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
        Ok(SliceEndpoint { addresses, ready })
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
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|e| json!({"addresses": e.addresses, "conditions": {"ready": e.ready}}))
        .collect();
    out.insert("endpoints".to_owned(), Value::Array(endpoints));
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|p| json!({"name": p.name, "port": p.port, "protocol": p.protocol.as_str()}))
        .collect();
    out.insert("ports".to_owned(), Value::Array(ports));
}
