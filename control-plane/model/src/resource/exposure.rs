//! How a service is reached besides by its virtual IP, and which of its endpoints a client gets: what of a Service's
//! specification goes to the kernel and to no proxy.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Meta, check,
    error::{At, Fault},
};

/// On a Service: `snat`, which is the default, or `dsr` (the backend answers the client directly).
pub const FORWARDING_ANNOTATION: &str = "isthmus.io/forwarding";
/// On a Service: the name of the proxy of their node by which pods reach its virtual IPs, with all that it does to calls.
pub const REDIRECT_ANNOTATION: &str = "isthmus.io/redirect";
/// As of a DNS label.
const MAX_PROXY_NAME: usize = 63;

/// Node ports, inclusive: Kubernetes' default range.
pub const NODE_PORTS: (u16, u16) = (30_000, 32_767);

const MAX_ADDRESSES: usize = 64;
const MAX_SOURCE_RANGES: usize = 256;
/// Seconds, Kubernetes' own default and limit.
const DEFAULT_AFFINITY: u32 = 10_800;
const MAX_AFFINITY: i64 = 86_400;

/// What a service is beside its selector and ports. The default is what a service has always been: a virtual IP of the
/// service CIDR's family, every ready endpoint for everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Exposure {
    pub kind: ServiceType,
    /// Addresses that somebody else brings to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// `loadBalancerIP`.
    pub load_balancer_ip: Option<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, as whoever announces them writes it.
    pub ingress_ips: Vec<IpAddr>,
    /// Who may come in by a load balancer's address; empty: whoever.
    pub source_ranges: Vec<IpNet>,
    /// `allocateLoadBalancerNodePorts: false`.
    pub without_node_ports: bool,
    /// Seconds for which a client keeps its backend after it has been quiet. None: no affinity.
    pub affinity_seconds: Option<u32>,
    /// Clients in the cluster get endpoints of their own node only.
    pub internal_local: bool,
    /// Clients from outside get endpoints of the node that they arrive at only.
    pub external_local: bool,
    /// A requested one.
    pub health_check_node_port: Option<u16>,
    pub families: Families,
    /// The second of `clusterIPs`, where the user asks for one.
    pub second_ip: Option<IpAddr>,
    pub publish_not_ready: bool,
    /// `trafficDistribution`: endpoints of the client's zone go before others.
    pub same_zone_first: bool,
    /// `trafficDistribution: PreferSameNode`: those of the client's node before those, too.
    #[serde(default)]
    pub same_node_first: bool,
    /// From the annotation `isthmus.io/forwarding`.
    pub dsr: bool,
    /// From the annotation `isthmus.io/redirect`.
    pub redirect: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Which families of addresses a service has: the first is that of its first virtual IP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Families {
    /// As the user orders them; empty: as the cluster does.
    pub listed: Vec<IpFamily>,
    #[allow(missing_docs)]
    pub policy: FamilyPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum IpFamily {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FamilyPolicy {
    /// One.
    #[default]
    SingleStack,
    /// Both, where the cluster has both.
    PreferDualStack,
    /// Both, or the service is refused.
    RequireDualStack,
}

impl Exposure {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// It is to have a port at every node.
    pub fn wants_node_ports(&self) -> bool {
        match self.kind {
            ServiceType::ClusterIp => false,
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => !self.without_node_ports,
        }
    }

    /// It is to have a port at which every node says whether it has endpoints.
    pub fn wants_health_port(&self) -> bool {
        self.kind == ServiceType::LoadBalancer && self.external_local
    }

    /// Addresses of load balancers in front of it.
    pub fn load_balancer_ips(&self) -> impl Iterator<Item = IpAddr> {
        let all: BTreeSet<IpAddr> = match self.kind {
            ServiceType::LoadBalancer => {
                self.load_balancer_ip.iter().chain(&self.ingress_ips).copied().collect()
            }
            ServiceType::ClusterIp | ServiceType::NodePort => BTreeSet::new(),
        };
        all.into_iter()
    }
}

impl IpFamily {
    #[allow(missing_docs)]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }

    /// As objects spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }
}

impl ServiceType {
    /// As objects spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceType::ClusterIp => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
        }
    }
}

impl FamilyPolicy {
    /// As objects spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            FamilyPolicy::SingleStack => "SingleStack",
            FamilyPolicy::PreferDualStack => "PreferDualStack",
            FamilyPolicy::RequireDualStack => "RequireDualStack",
        }
    }
}

/// The fields of a Service's `spec` that make an [`Exposure`].
pub(super) struct WireExposure {
    pub(super) r#type: Option<String>,
    pub(super) external_ips: Vec<String>,
    pub(super) load_balancer_ip: Option<String>,
    pub(super) load_balancer_source_ranges: Vec<String>,
    pub(super) allocate_load_balancer_node_ports: Option<bool>,
    pub(super) session_affinity: Option<String>,
    pub(super) session_affinity_config: Option<WireAffinity>,
    pub(super) internal_traffic_policy: Option<String>,
    pub(super) external_traffic_policy: Option<String>,
    pub(super) health_check_node_port: Option<i64>,
    pub(super) ip_families: Vec<String>,
    pub(super) ip_family_policy: Option<String>,
    pub(super) publish_not_ready_addresses: Option<bool>,
    pub(super) traffic_distribution: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Option<WireClientIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireClientIp {
    timeout_seconds: Option<i64>,
}

/// A Service's `status`, of which everything but the addresses is ours to say.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct WireStatus {
    load_balancer: WireLoadBalancer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireLoadBalancer {
    ingress: Vec<WireIngress>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireIngress {
    ip: Option<String>,
}

impl WireExposure {
    /// `addresses` are the virtual IPs that the user asks for.
    pub(super) fn parse(
        self,
        meta: &Meta,
        status: Option<WireStatus>,
        addresses: &[IpAddr],
        at: &At,
    ) -> Result<Exposure, Fault> {
        let kind = self.kind(at)?;
        let at_ips = at.field("externalIPs");
        at_ips.at_most(&self.external_ips, MAX_ADDRESSES)?;
        let external_ips = distinct(&self.external_ips, &at_ips, check::unicast_ip)?;
        let outside = kind != ServiceType::ClusterIp || !external_ips.is_empty();
        let external_local = one_of(
            self.external_traffic_policy.as_deref(),
            &at.field("externalTrafficPolicy"),
            [("Cluster", false), ("Local", true)],
        )?;
        if external_local && !outside {
            return at
                .field("externalTrafficPolicy")
                .refuse("Local", "is for services that have a way in from outside: a type or externalIPs");
        }
        let (zone_first, node_first) = self.nearest_first(at)?;
        let exposure = Exposure {
            load_balancer_ip: self.load_balancer_ip(kind, at)?,
            ingress_ips: status.unwrap_or_default().addresses(kind)?,
            source_ranges: self.source_ranges(kind, at)?,
            without_node_ports: self.allocate_load_balancer_node_ports == Some(false),
            affinity_seconds: self.affinity(at)?,
            internal_local: one_of(
                self.internal_traffic_policy.as_deref(),
                &at.field("internalTrafficPolicy"),
                [("Cluster", false), ("Local", true)],
            )?,
            health_check_node_port: self.health_check(kind, external_local, at)?,
            families: self.families(addresses, at)?,
            second_ip: addresses.get(1).copied(),
            publish_not_ready: self.publish_not_ready_addresses.unwrap_or(false),
            same_zone_first: zone_first,
            same_node_first: node_first,
            dsr: forwarding(meta)?,
            redirect: redirect(meta)?,
            kind,
            external_ips,
            external_local,
        };
        let at_nodes = at.field("allocateLoadBalancerNodePorts");
        if self.allocate_load_balancer_node_ports.is_some() && kind != ServiceType::LoadBalancer {
            return at_nodes.refuse("", "is for type LoadBalancer");
        }
        Ok(exposure)
    }

    fn kind(&self, at: &At) -> Result<ServiceType, Fault> {
        let Some(text) = self.r#type.as_deref() else { return Ok(ServiceType::ClusterIp) };
        let known = [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer];
        known.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            at.field("type")
                .fault(text, "is not supported; supported are ClusterIP, NodePort and LoadBalancer")
        })
    }

    fn load_balancer_ip(&self, kind: ServiceType, at: &At) -> Result<Option<IpAddr>, Fault> {
        let Some(text) = self.load_balancer_ip.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let at = at.field("loadBalancerIP");
        if kind != ServiceType::LoadBalancer {
            return at.refuse(text, "is for type LoadBalancer");
        }
        check::unicast_ip(text, &at).map(Some)
    }

    fn source_ranges(&self, kind: ServiceType, at: &At) -> Result<Vec<IpNet>, Fault> {
        let at = at.field("loadBalancerSourceRanges");
        at.at_most(&self.load_balancer_source_ranges, MAX_SOURCE_RANGES)?;
        if !self.load_balancer_source_ranges.is_empty() && kind != ServiceType::LoadBalancer {
            return at.refuse("", "is for type LoadBalancer");
        }
        // Kubernetes trims them.
        distinct(&self.load_balancer_source_ranges, &at, |text, at| check::cidr(text.trim(), at))
    }

    fn affinity(&self, at: &At) -> Result<Option<u32>, Fault> {
        let by_client = one_of(
            self.session_affinity.as_deref(),
            &at.field("sessionAffinity"),
            [("None", false), ("ClientIP", true)],
        )?;
        let at = at.field("sessionAffinityConfig");
        let config = self.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        if !by_client {
            return match config {
                Some(_) => at.refuse("", "is for sessionAffinity ClientIP"),
                None => Ok(None),
            };
        }
        let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
            return Ok(Some(DEFAULT_AFFINITY));
        };
        match u32::try_from(seconds) {
            Ok(short) if (1..=MAX_AFFINITY).contains(&seconds) => Ok(Some(short)),
            _ => at
                .field("clientIP")
                .field("timeoutSeconds")
                .refuse(seconds, format!("must be 1 to {MAX_AFFINITY}")),
        }
    }

    fn health_check(&self, kind: ServiceType, local: bool, at: &At) -> Result<Option<u16>, Fault> {
        let Some(number) = self.health_check_node_port.filter(|number| *number != 0) else { return Ok(None) };
        let at = at.field("healthCheckNodePort");
        if kind != ServiceType::LoadBalancer || !local {
            return at.refuse(number, "is for type LoadBalancer with externalTrafficPolicy Local");
        }
        node_port(number, &at).map(Some)
    }

    fn families(&self, addresses: &[IpAddr], at: &At) -> Result<Families, Fault> {
        let at_policy = at.field("ipFamilyPolicy");
        let known =
            [FamilyPolicy::SingleStack, FamilyPolicy::PreferDualStack, FamilyPolicy::RequireDualStack];
        let policy = match self.ip_family_policy.as_deref() {
            // As in Kubernetes, two families are the wish for both.
            None if self.ip_families.len() > 1 || addresses.len() > 1 => FamilyPolicy::RequireDualStack,
            None => FamilyPolicy::SingleStack,
            Some(text) => known.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
                at_policy.fault(text, "must be SingleStack, PreferDualStack or RequireDualStack")
            })?,
        };
        let at_families = at.field("ipFamilies");
        let listed = distinct(&self.ip_families, &at_families, |text, at| {
            let known = [IpFamily::V4, IpFamily::V6];
            known
                .into_iter()
                .find(|family| family.as_str() == text)
                .ok_or_else(|| at.fault(text, "must be IPv4 or IPv6"))
        })?;
        for (i, (family, address)) in listed.iter().zip(addresses).enumerate() {
            if *family != IpFamily::of(*address) {
                return at_families
                    .index(i)
                    .refuse(family.as_str(), format!("is not the family of {address}"));
            }
        }
        if policy == FamilyPolicy::SingleStack && listed.len().max(addresses.len()) > 1 {
            return at_policy.refuse("SingleStack", "can't stand beside two families or addresses");
        }
        Ok(Families { listed, policy })
    }

    /// Whether endpoints of the client's zone, and of its node, go before others.
    fn nearest_first(&self, at: &At) -> Result<(bool, bool), Fault> {
        match self.traffic_distribution.as_deref() {
            None => Ok((false, false)),
            Some("PreferClose" | "PreferSameZone") => Ok((true, false)),
            Some("PreferSameNode") => Ok((true, true)),
            Some(text) => at
                .field("trafficDistribution")
                .refuse(text, "must be PreferSameNode, PreferSameZone or PreferClose"),
        }
    }
}

impl WireStatus {
    /// An address that can't be read is left out: nobody who writes a service can do anything about its status.
    fn addresses(self, kind: ServiceType) -> Result<Vec<IpAddr>, Fault> {
        let at = At::new("status").field("loadBalancer").field("ingress");
        at.at_most(&self.load_balancer.ingress, MAX_ADDRESSES)?;
        if kind != ServiceType::LoadBalancer {
            return Ok(Vec::new());
        }
        let texts = self.load_balancer.ingress.into_iter().enumerate();
        let texts = texts.filter_map(|(i, ingress)| Some((i, ingress.ip?)));
        texts.map(|(i, text)| check::unicast_ip(&text, &at.index(i).field("ip"))).collect()
    }
}

/// A number of a node port.
pub(super) fn node_port(number: i64, at: &At) -> Result<u16, Fault> {
    let (first, last) = NODE_PORTS;
    u16::try_from(number)
        .ok()
        .filter(|port| (first..=last).contains(port))
        .ok_or_else(|| at.fault(number, format!("must be {first} to {last}")))
}

fn forwarding(meta: &Meta) -> Result<bool, Fault> {
    let at = At::new("metadata").field("annotations").key(FORWARDING_ANNOTATION);
    one_of(
        meta.annotations.get(FORWARDING_ANNOTATION).map(String::as_str),
        &at,
        [("snat", false), ("dsr", true)],
    )
}

fn redirect(meta: &Meta) -> Result<Option<String>, Fault> {
    let Some(name) = meta.annotations.get(REDIRECT_ANNOTATION) else { return Ok(None) };
    let at = At::new("metadata").field("annotations").key(REDIRECT_ANNOTATION);
    if !is_proxy_name(name) {
        return at.refuse(name, PROXY_NAME);
    }
    Ok(Some(name.clone()))
}

/// What is wrong with what is no [`is_proxy_name`].
pub(super) const PROXY_NAME: &str = "must be the name of a proxy: a DNS label other than 'dns'";

/// Whether a proxy of nodes may be called so. (`dns` is the agents' own, which knows nothing of services.)
pub(super) fn is_proxy_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_PROXY_NAME).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name != "dns"
}

/// False if nothing is said.
fn one_of(text: Option<&str>, at: &At, words: [(&str, bool); 2]) -> Result<bool, Fault> {
    let Some(text) = text else { return Ok(false) };
    let known = words.iter().find(|(word, _)| *word == text);
    known
        .map(|(_, value)| *value)
        .ok_or_else(|| at.fault(text, format!("must be {} or {}", words[0].0, words[1].0)))
}

fn distinct<T: PartialEq>(
    texts: &[String],
    at: &At,
    parse: impl Fn(&str, &At) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut out: Vec<T> = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let at = at.index(i);
        let value = parse(text, &at)?;
        if out.contains(&value) {
            return at.refuse(text, "is listed twice");
        }
        out.push(value);
    }
    Ok(out)
}

/// Adds what is not the default.
pub(super) fn render(exposure: &Exposure, out: &mut Map<String, Value>) {
    let mut put = |field: &str, value: Value| drop(out.insert(field.to_owned(), value));
    if exposure.kind != ServiceType::ClusterIp {
        put("type", json!(exposure.kind.as_str()));
    }
    if !exposure.external_ips.is_empty() {
        put("externalIPs", json!(exposure.external_ips));
    }
    if let Some(address) = exposure.load_balancer_ip {
        put("loadBalancerIP", json!(address));
    }
    if !exposure.source_ranges.is_empty() {
        put("loadBalancerSourceRanges", json!(exposure.source_ranges));
    }
    if exposure.without_node_ports {
        put("allocateLoadBalancerNodePorts", json!(false));
    }
    if let Some(seconds) = exposure.affinity_seconds {
        put("sessionAffinity", json!("ClientIP"));
        put("sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": seconds } }));
    }
    if exposure.internal_local {
        put("internalTrafficPolicy", json!("Local"));
    }
    if exposure.external_local {
        put("externalTrafficPolicy", json!("Local"));
    }
    if let Some(port) = exposure.health_check_node_port {
        put("healthCheckNodePort", json!(port));
    }
    if !exposure.families.listed.is_empty() {
        put("ipFamilies", exposure.families.listed.iter().map(|family| json!(family.as_str())).collect());
    }
    if exposure.families.policy != FamilyPolicy::SingleStack {
        put("ipFamilyPolicy", json!(exposure.families.policy.as_str()));
    }
    if exposure.publish_not_ready {
        put("publishNotReadyAddresses", json!(true));
    }
    if exposure.same_node_first {
        put("trafficDistribution", json!("PreferSameNode"));
    } else if exposure.same_zone_first {
        put("trafficDistribution", json!("PreferSameZone"));
    }
}

/// `status`, if there is anything in it that a user wrote.
pub(super) fn render_status(exposure: &Exposure) -> Option<Value> {
    let ingress: Vec<Value> = exposure.ingress_ips.iter().map(|ip| json!({ "ip": ip })).collect();
    (!ingress.is_empty()).then(|| json!({ "loadBalancer": { "ingress": ingress } }))
}
