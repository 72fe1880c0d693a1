//! `v1 Service`: what it says of virtual IPs, ports and endpoints. How else it is reached, and which endpoints a client
//! gets, is in [`exposure`]. External names are refused.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    Labels, Meta, PortRef, Service, ServicePort, ServiceType, check,
    error::{At, Fault},
    export_to,
    exposure::{self, WireAffinity, WireExposure, WireStatus},
    overflow,
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
    r#type: Option<String>,
    #[serde(default, rename = "externalIPs")]
    external_ips: Vec<String>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<String>,
    #[serde(default)]
    load_balancer_source_ranges: Vec<String>,
    allocate_load_balancer_node_ports: Option<bool>,
    session_affinity: Option<String>,
    session_affinity_config: Option<WireAffinity>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<i64>,
    #[serde(default)]
    ip_families: Vec<String>,
    ip_family_policy: Option<String>,
    publish_not_ready_addresses: Option<bool>,
    traffic_distribution: Option<String>,
    // Refused.
    external_name: Option<IgnoredAny>,
    load_balancer_class: Option<IgnoredAny>,
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
    pub(super) fn parse(self, meta: Meta, status: Option<WireStatus>) -> Result<Service, Fault> {
        let at = At::new("spec");
        at.unsupported(&[
            ("externalName", self.external_name.is_some()),
            ("loadBalancerClass", self.load_balancer_class.is_some()),
        ])?;
        check::labels(&self.selector, &at.field("selector"))?;
        let (addresses, headless) = self.addresses(&at)?;
        let wire = WireExposure {
            r#type: self.r#type,
            external_ips: self.external_ips,
            load_balancer_ip: self.load_balancer_ip,
            load_balancer_source_ranges: self.load_balancer_source_ranges,
            allocate_load_balancer_node_ports: self.allocate_load_balancer_node_ports,
            session_affinity: self.session_affinity,
            session_affinity_config: self.session_affinity_config,
            internal_traffic_policy: self.internal_traffic_policy,
            external_traffic_policy: self.external_traffic_policy,
            health_check_node_port: self.health_check_node_port,
            ip_families: self.ip_families,
            ip_family_policy: self.ip_family_policy,
            publish_not_ready_addresses: self.publish_not_ready_addresses,
            traffic_distribution: self.traffic_distribution,
        };
        let exposure = wire.parse(&meta, status, &addresses, &at)?;
        if headless && exposure.kind != ServiceType::ClusterIp {
            return at
                .field("clusterIP")
                .refuse("None", format!("can't be of type {}", exposure.kind.as_str()));
        }
        let at = at.field("ports");
        at.at_most(&self.ports, MAX_PORTS)?;
        if self.ports.is_empty() && !headless {
            return Err(at.missing());
        }
        let several = self.ports.len() > 1;
        let mut ports: Vec<ServicePort> = Vec::new();
        let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (i, wire) in self.ports.into_iter().enumerate() {
            let at = at.index(i);
            let port = wire.parse(exposure.kind, &at)?;
            if several && port.name.is_empty() {
                return at.field("name").refuse("", "is required when a service has several ports");
            }
            if !names.insert(port.name.clone()) {
                return at.field("name").refuse(&port.name, "names two ports");
            }
            if !numbers.insert((port.port, port.protocol)) {
                return at.field("port").refuse(port.port, "is listed twice with the same protocol");
            }
            if let Some(number) = port.node_port
                && !node_ports.insert((number, port.protocol))
            {
                return at.field("nodePort").refuse(number, "is listed twice with the same protocol");
            }
            ports.push(port);
        }
        let visibility = export_to::parse(&meta)?;
        overflow::check(&meta)?;
        let cluster_ip = addresses.first().copied();
        Ok(Service { meta, selector: self.selector, ports, cluster_ip, headless, visibility, exposure })
    }

    /// The virtual IPs that the user asks for, of which there is one of each family at most.
    fn addresses(&self, at: &At) -> Result<(Vec<IpAddr>, bool), Fault> {
        let at_list = at.field("clusterIPs");
        at_list.at_most(&self.cluster_ips, 2)?;
        let single = self.cluster_ip.as_ref().filter(|ip| !ip.is_empty());
        let listed: Vec<&String> = self.cluster_ips.iter().filter(|ip| !ip.is_empty()).collect();
        if let (Some(listed), Some(single)) = (listed.first(), single)
            && *listed != single
        {
            return at_list.index(0).refuse(listed, "must be the same as clusterIP");
        }
        let all = if listed.is_empty() { single.into_iter().collect() } else { listed };
        if all.iter().any(|ip| *ip == "None") {
            return match all.as_slice() {
                [_] => Ok((Vec::new(), true)),
                _ => at_list.refuse("None", "can't stand beside an address"),
            };
        }
        let at_single = at.field("clusterIP");
        let place = |i: usize| if i == 0 { at_single.clone() } else { at_list.index(i) };
        let parsed = all.iter().enumerate().map(|(i, text)| check::unicast_ip(text, &place(i)));
        let addresses: Vec<IpAddr> = parsed.collect::<Result<_, _>>()?;
        if let [first, second] = addresses.as_slice()
            && first.is_ipv4() == second.is_ipv4()
        {
            return at_list.index(1).refuse(second, "is a second address of the same family");
        }
        Ok((addresses, false))
    }
}

impl WireServicePort {
    fn parse(self, kind: ServiceType, at: &At) -> Result<ServicePort, Fault> {
        let at_node = at.field("nodePort");
        let node_port = match self.node_port {
            None | Some(0) => None,
            Some(number) if kind == ServiceType::ClusterIp => {
                return at_node.refuse(number, "is for type NodePort or LoadBalancer");
            }
            Some(number) => Some(exposure::node_port(number, &at_node)?),
        };
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
        Ok(ServicePort { name, port: number, target_port, protocol, app_protocol, node_port })
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
        if let Some(second) = service.exposure.second_ip {
            out.insert("clusterIPs".to_owned(), json!([ip, second]));
        }
    }
    exposure::render(&service.exposure, &mut out);
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
    if let Some(number) = service_port.node_port {
        out.insert("nodePort".to_owned(), json!(number));
    }
    Value::Object(out)
}
