//! `v1 Service`: what it says of virtual IPs, ports and endpoints. What opens the cluster to the outside
//! (node ports, load balancers, external names) is refused.

use std::collections::BTreeSet;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    Labels, Meta, PortRef, Service, ServicePort, check,
    error::{At, Fault},
    export_to, overflow,
    port::{self, WirePort},
};

const MAX_PORTS: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct WireService {
    #[serde(default)]
    selector: Labels,
    #[serde(default)]
    ports: Vec<WireServicePort>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    // Accepted with their neutral value only.
    r#type: Option<String>,
    session_affinity: Option<String>,
    internal_traffic_policy: Option<String>,
    publish_not_ready_addresses: Option<bool>,
    // Accepted: the virtual IP's family is the service CIDR's.
    #[serde(default)]
    ip_families: Vec<String>,
    ip_family_policy: Option<String>,
    // Refused.
    external_name: Option<IgnoredAny>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<IgnoredAny>,
    external_traffic_policy: Option<IgnoredAny>,
    health_check_node_port: Option<IgnoredAny>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<IgnoredAny>,
    load_balancer_class: Option<IgnoredAny>,
    load_balancer_source_ranges: Option<IgnoredAny>,
    allocate_load_balancer_node_ports: Option<IgnoredAny>,
    session_affinity_config: Option<IgnoredAny>,
    traffic_distribution: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireServicePort {
    name: Option<String>,
    port: i64,
    target_port: Option<WirePort>,
    protocol: Option<String>,
    app_protocol: Option<String>,
    node_port: Option<i64>,
}

impl WireService {
    pub(super) fn parse(self, meta: Meta) -> Result<Service, Fault> {
        let at = At::new("spec");
        self.refuse_unsupported(&at)?;
        check::labels(&self.selector, &at.field("selector"))?;
        let (cluster_ip, headless) = self.address(&at)?;
        let at = at.field("ports");
        at.at_most(&self.ports, MAX_PORTS)?;
        if self.ports.is_empty() && !headless {
            return Err(at.missing());
        }
        let several = self.ports.len() > 1;
        let mut ports: Vec<ServicePort> = Vec::new();
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (i, wire) in self.ports.into_iter().enumerate() {
            let at = at.index(i);
            let port = wire.parse(&at)?;
            if several && port.name.is_empty() {
                return at.field("name").refuse("", "is required when a service has several ports");
            }
            if !names.insert(port.name.clone()) {
                return at.field("name").refuse(&port.name, "names two ports");
            }
            if !numbers.insert((port.port, port.protocol)) {
                return at.field("port").refuse(port.port, "is listed twice with the same protocol");
            }
            ports.push(port);
        }
        let visibility = export_to::parse(&meta)?;
        overflow::check(&meta)?;
        Ok(Service { meta, selector: self.selector, ports, cluster_ip, headless, visibility })
    }

    fn refuse_unsupported(&self, at: &At) -> Result<(), Fault> {
        let neutral = [
            ("type", &self.r#type, "ClusterIP"),
            ("sessionAffinity", &self.session_affinity, "None"),
            ("internalTrafficPolicy", &self.internal_traffic_policy, "Cluster"),
        ];
        for (field, value, allowed) in neutral {
            if let Some(value) = value
                && value != allowed
            {
                return at.field(field).refuse(value, format!("is not supported; only {allowed} is"));
            }
        }
        if self.publish_not_ready_addresses == Some(true) {
            return at.field("publishNotReadyAddresses").refuse("true", "is not supported; only false is");
        }
        at.unsupported(&[
            ("externalName", self.external_name.is_some()),
            ("externalIPs", self.external_ips.is_some()),
            ("externalTrafficPolicy", self.external_traffic_policy.is_some()),
            ("healthCheckNodePort", self.health_check_node_port.is_some()),
            ("loadBalancerIP", self.load_balancer_ip.is_some()),
            ("loadBalancerClass", self.load_balancer_class.is_some()),
            ("loadBalancerSourceRanges", self.load_balancer_source_ranges.is_some()),
            ("allocateLoadBalancerNodePorts", self.allocate_load_balancer_node_ports.is_some()),
            ("sessionAffinityConfig", self.session_affinity_config.is_some()),
            ("trafficDistribution", self.traffic_distribution.is_some()),
        ])
    }

    fn address(&self, at: &At) -> Result<(Option<std::net::IpAddr>, bool), Fault> {
        if let [_, second, ..] = self.cluster_ips.as_slice() {
            return at.field("clusterIPs").index(1).refuse(second, "a second address is not supported");
        }
        let listed = self.cluster_ips.first().filter(|ip| !ip.is_empty());
        let single = self.cluster_ip.as_ref().filter(|ip| !ip.is_empty());
        if let (Some(listed), Some(single)) = (listed, single)
            && listed != single
        {
            return at.field("clusterIPs").index(0).refuse(listed, "must be the same as clusterIP");
        }
        match single.or(listed).map(String::as_str) {
            None => Ok((None, false)),
            Some("None") => Ok((None, true)),
            Some(text) => Ok((Some(check::unicast_ip(text, &at.field("clusterIP"))?), false)),
        }
    }
}

impl WireServicePort {
    fn parse(self, at: &At) -> Result<ServicePort, Fault> {
        if self.node_port.is_some_and(|port| port != 0) {
            return at.field("nodePort").refuse("", "is not supported");
        }
        let name = self.name.unwrap_or_default();
        if !name.is_empty() {
            check::dns_label(&name, &at.field("name"))?;
        }
        let number = check::port(self.port, &at.field("port"))?;
        let protocol = port::protocol(self.protocol.as_deref(), &at.field("protocol"))?;
        let target_port = match self.target_port {
            // Kubernetes' own printers write 0 where the default is meant.
            None | Some(WirePort::Number(0)) => PortRef::Number(number),
            Some(wire) => wire.parse(&at.field("targetPort"))?,
        };
        let app_protocol = match self.app_protocol.as_deref() {
            None | Some("") => port::implied_app_protocol(&name, protocol),
            Some(text) => port::app_protocol(text, &at.field("appProtocol"))?,
        };
        Ok(ServicePort { name, port: number, target_port, protocol, app_protocol })
    }
}

pub(super) fn render(service: &Service) -> Value {
    let mut out = Map::new();
    if !service.selector.is_empty() {
        out.insert("selector".to_owned(), json!(service.selector));
    }
    if !service.ports.is_empty() {
        out.insert("ports".to_owned(), service.ports.iter().map(render_port).collect());
    }
    if service.headless {
        out.insert("clusterIP".to_owned(), json!("None"));
    } else if let Some(ip) = service.cluster_ip {
        out.insert("clusterIP".to_owned(), json!(ip));
    }
    Value::Object(out)
}

fn render_port(service_port: &ServicePort) -> Value {
    let mut out = Map::new();
    if !service_port.name.is_empty() {
        out.insert("name".to_owned(), json!(service_port.name));
    }
    out.insert("port".to_owned(), json!(service_port.port));
    out.insert("targetPort".to_owned(), port::render(&service_port.target_port));
    out.insert("protocol".to_owned(), json!(service_port.protocol.as_str()));
    out.insert("appProtocol".to_owned(), json!(service_port.app_protocol.as_str()));
    Value::Object(out)
}
