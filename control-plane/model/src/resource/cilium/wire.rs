//! From JSON, as Cilium's custom resources spell it.

use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    super::{
        Kind, Meta, PortRef, Protocol, check,
        error::{At, Fault},
        exposure::{PROXY_NAME, is_proxy_name},
        network_policy::{MAX_COMBINATIONS, MAX_EXCEPTS, MAX_PEERS, MAX_RULES},
        port::{self, WirePort},
        selector::WireSelector,
    },
    CiliumCidrSet, CiliumEntity, CiliumEntry, CiliumIcmp, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule,
    CiliumSelector, CiliumSide, HttpRule,
    far::{WireName, WireTarget},
    http::WireHttp,
    icmp, selector,
};
use crate::policy::{NODE_PROXY, NamePattern, cover};

/// Rules of one object.
const MAX_SPECS: usize = 16;
/// Ports of one element of `toPorts`, as in Cilium.
pub(super) const MAX_PORTS: usize = 40;
/// Elements of `toPorts`.
const MAX_TO_PORTS: usize = 40;
/// Elements of `rules.http`.
const MAX_HTTP_RULES: usize = 64;

/// An object without its metadata.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
pub(in super::super) struct WireCilium {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: super::super::meta::WireMeta,
    spec: Option<WireRule>,
    #[serde(default)]
    specs: Vec<WireRule>,
    status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
struct WireRule {
    endpoint_selector: Option<WireSelector>,
    #[serde(default)]
    ingress: Vec<WireEntry>,
    #[serde(default)]
    ingress_deny: Vec<WireEntry>,
    #[serde(default)]
    egress: Vec<WireEntry>,
    #[serde(default)]
    egress_deny: Vec<WireEntry>,
    enable_default_deny: Option<WireDefaultDeny>,
    // Without an effect on traffic.
    labels: Option<IgnoredAny>,
    description: Option<IgnoredAny>,
    log: Option<IgnoredAny>,
    node_selector: Option<WireSelector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDefaultDeny {
    ingress: Option<bool>,
    egress: Option<bool>,
}

/// Of either direction: what belongs to the other one is refused afterwards, by name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEntry {
    from_endpoints: Option<Vec<WireSelector>>,
    to_endpoints: Option<Vec<WireSelector>>,
    #[serde(rename = "fromCIDR")]
    from_cidr: Option<Vec<String>>,
    #[serde(rename = "toCIDR")]
    to_cidr: Option<Vec<String>>,
    #[serde(rename = "fromCIDRSet")]
    from_cidr_set: Option<Vec<WireCidrSet>>,
    #[serde(rename = "toCIDRSet")]
    to_cidr_set: Option<Vec<WireCidrSet>>,
    from_entities: Option<Vec<String>>,
    to_entities: Option<Vec<String>>,
    #[serde(default)]
    to_ports: Vec<WirePortRule>,
    #[serde(default)]
    icmps: Vec<WireIcmps>,
    to_services: Option<Vec<WireTarget>>,
    #[serde(rename = "toFQDNs")]
    to_fqdns: Option<Vec<WireName>>,
    authentication: Option<WireAuthentication>,
    // Refused.
    from_requires: Option<IgnoredAny>,
    to_requires: Option<IgnoredAny>,
    from_nodes: Option<IgnoredAny>,
    to_nodes: Option<IgnoredAny>,
    from_groups: Option<IgnoredAny>,
    to_groups: Option<IgnoredAny>,
}

/// An element of `icmps`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIcmps {
    #[serde(default)]
    fields: Vec<WireIcmp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIcmp {
    family: Option<String>,
    r#type: Option<WirePort>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireL7 {
    dns: Option<Vec<WireName>>,
    http: Option<Vec<WireHttp>>,
    // Refused: nobody here reads them.
    kafka: Option<IgnoredAny>,
    l7: Option<IgnoredAny>,
    l7proto: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireCidrSet {
    cidr: Option<String>,
    #[serde(default)]
    except: Vec<String>,
    // Refused.
    cidr_group_ref: Option<IgnoredAny>,
    cidr_group_selector: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireAuthentication {
    mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePortRule {
    #[serde(default)]
    ports: Vec<WireCiliumPort>,
    rules: Option<WireL7>,
    listener: Option<WireListener>,
    // Refused: they need a proxy.
    #[serde(rename = "terminatingTLS")]
    terminating_tls: Option<IgnoredAny>,
    #[serde(rename = "originatingTLS")]
    originating_tls: Option<IgnoredAny>,
    server_names: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireListener {
    name: Option<String>,
    // Refused.
    envoy_config: Option<IgnoredAny>,
    priority: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireCiliumPort {
    port: Option<WirePort>,
    protocol: Option<String>,
    end_port: Option<i64>,
}

/// What an entry may say, by the list that it stands in, and the policy.
#[derive(Clone, Copy)]
struct Place<'a> {
    ingress: bool,
    deny: bool,
    /// Of nodes.
    nodes: bool,
    /// The policy's namespace, or nothing.
    own: &'a str,
}

impl WireCilium {
    pub(in super::super) fn parse(self, kind: Kind) -> Result<CiliumPolicy, Fault> {
        let meta = self.metadata.parse(kind)?;
        let (spec, specs) = (At::new("spec"), At::new("specs"));
        if self.spec.is_none() && self.specs.is_empty() {
            return Err(spec.missing());
        }
        specs.at_most(&self.specs, MAX_SPECS)?;
        let one = |wire: WireRule, at: &At| wire.parse(&meta, at);
        let spec = self.spec.map(|wire| one(wire, &spec)).transpose()?;
        let parsed = self.specs.into_iter().enumerate().map(|(i, wire)| one(wire, &specs.index(i)));
        let specs = parsed.collect::<Result<_, _>>()?;
        Ok(CiliumPolicy { spec, specs, meta })
    }
}

impl WireRule {
    fn parse(self, meta: &Meta, at: &At) -> Result<CiliumRule, Fault> {
        let at_subject = at.field("endpointSelector");
        let own = &meta.name.namespace;
        let (subject, nodes) = match (self.endpoint_selector, self.node_selector) {
            (_, Some(_)) if !own.is_empty() => {
                return at.field("nodeSelector").refuse(
                    "",
                    "is not supported here: only a CiliumClusterwideNetworkPolicy selects nodes",
                );
            }
            (endpoints, None) => {
                (selector::parse(endpoints.ok_or_else(|| at_subject.missing())?, &at_subject)?, None)
            }
            (None, Some(nodes)) => {
                (CiliumSelector::default(), Some(selector::plain(nodes, &at.field("nodeSelector"))?))
            }
            (Some(_), Some(_)) => {
                return at
                    .field("nodeSelector")
                    .refuse("", "can't stand beside endpointSelector: write two rules");
            }
        };
        if let (false, Some(namespaces)) = (own.is_empty(), &subject.namespaces) {
            // What it says of other labels can't be known yet, and may change.
            let mut by_name = namespaces.clone();
            let is_name = |key: &str| key == super::super::NAMESPACE_NAME_LABEL;
            by_name.match_labels.retain(|key, _| is_name(key));
            by_name.match_expressions.retain(|expression| is_name(&expression.key));
            if !by_name.matches(&crate::policy::undeclared(own)) {
                return at_subject.refuse(
                    "",
                    format!(
                        "selects other namespaces than {own}, which only a CiliumClusterwideNetworkPolicy can"
                    ),
                );
            }
        }
        if [&self.ingress, &self.ingress_deny, &self.egress, &self.egress_deny].iter().all(|l| l.is_empty()) {
            return at.refuse("", "must have an entry in ingress, ingressDeny, egress or egressDeny");
        }
        let said = self.enable_default_deny.unwrap_or(WireDefaultDeny { ingress: None, egress: None });
        let place = |ingress| Place { ingress, deny: false, nodes: nodes.is_some(), own };
        let side = |allow, deny, ingress, default_deny| -> Result<CiliumSide, Fault> {
            let (name, deny_name) =
                if ingress { ("ingress", "ingressDeny") } else { ("egress", "egressDeny") };
            Ok(CiliumSide {
                allow: entries(allow, Place { deny: false, ..place(ingress) }, &at.field(name))?,
                deny: entries(deny, Place { deny: true, ..place(ingress) }, &at.field(deny_name))?,
                default_deny,
            })
        };
        let ingress = side(self.ingress, self.ingress_deny, true, said.ingress)?;
        let egress = side(self.egress, self.egress_deny, false, said.egress)?;
        Ok(CiliumRule { subject, nodes, ingress, egress })
    }
}

fn entries(wire: Vec<WireEntry>, place: Place<'_>, at: &At) -> Result<Vec<CiliumEntry>, Fault> {
    at.at_most(&wire, MAX_RULES)?;
    let parsed = wire.into_iter().enumerate().map(|(i, entry)| entry.parse(place, &at.index(i)));
    let parsed: Vec<CiliumEntry> = parsed.collect::<Result<_, _>>()?;
    let combinations: usize = parsed.iter().map(combinations).sum();
    if combinations > MAX_COMBINATIONS {
        return at.refuse(
            "",
            format!("has {combinations} combinations of peers and ports, but at most {MAX_COMBINATIONS} are allowed"),
        );
    }
    Ok(parsed)
}

fn combinations(entry: &CiliumEntry) -> usize {
    let peers = match &entry.peers {
        CiliumPeers::Unsaid => 1,
        CiliumPeers::Endpoints(list) => list.len(),
        CiliumPeers::Cidrs(list) => list.len(),
        CiliumPeers::CidrSets(list) => list.iter().map(|set| cover(set.cidr, &set.except).len()).sum(),
        CiliumPeers::Entities(list) => list.len(),
        CiliumPeers::Services(list) => list.len(),
        CiliumPeers::Names(list) => list.len(),
    };
    let ports: usize = entry.ports.iter().map(|port| port.protocols().len()).sum();
    peers * ports.max(entry.icmps.len()).max(1)
}

impl WireEntry {
    fn parse(self, place: Place<'_>, at: &At) -> Result<CiliumEntry, Fault> {
        at.unsupported(&[
            ("fromRequires", self.from_requires.is_some()),
            ("toRequires", self.to_requires.is_some()),
            ("fromNodes", self.from_nodes.is_some()),
            ("toNodes", self.to_nodes.is_some()),
            ("fromGroups", self.from_groups.is_some()),
            ("toGroups", self.to_groups.is_some()),
        ])?;
        let strangers = [
            ("fromEndpoints", self.from_endpoints.is_some(), true),
            ("toEndpoints", self.to_endpoints.is_some(), false),
            ("fromCIDR", self.from_cidr.is_some(), true),
            ("toCIDR", self.to_cidr.is_some(), false),
            ("fromCIDRSet", self.from_cidr_set.is_some(), true),
            ("toCIDRSet", self.to_cidr_set.is_some(), false),
            ("fromEntities", self.from_entities.is_some(), true),
            ("toEntities", self.to_entities.is_some(), false),
            ("toServices", self.to_services.is_some(), false),
            ("toFQDNs", self.to_fqdns.is_some(), false),
        ];
        for (name, present, ingress) in strangers {
            if present && ingress != place.ingress {
                return at.field(name).refuse("", "belongs to the other direction");
            }
        }
        if let Some(mode) = self.authentication.and_then(|authentication| authentication.mode)
            && mode != "disabled"
        {
            return at
                .field("authentication")
                .field("mode")
                .refuse(mode, "is not supported; only disabled is");
        }
        let at_icmps = at.field("icmps");
        let icmps = icmps(self.icmps, &at_icmps)?;
        if !icmps.is_empty() && !self.to_ports.is_empty() {
            return at_icmps.refuse("", "can't stand beside toPorts: write two entries");
        }
        let at_services = at.field("toServices");
        if self.to_services.is_some() && !self.to_ports.is_empty() {
            return at_services.refuse("", "can't stand beside toPorts: a service has its own");
        }
        let at_names = at.field("toFQDNs");
        if self.to_fqdns.is_some() && place.deny {
            return at_names.refuse(
                "",
                "is not supported in a deny entry: who denies names denies what is not asked for",
            );
        }
        if self.to_fqdns.is_some() && place.nodes {
            return at_names.refuse("", "is not supported for nodes: what they ask of DNS is not seen");
        }
        let ToPorts { ports, read, proxy } = to_ports(self.to_ports, place, &at.field("toPorts"))?;
        if self.to_fqdns.is_some() && !read.http.is_empty() {
            return at_names
                .refuse("", "can't stand beside rules.http: who reads requests knows addresses only");
        }
        let Read { dns, http } = read;
        let field = |tail: &str| at.field(&format!("{}{tail}", if place.ingress { "from" } else { "to" }));
        let mut said: Vec<(&str, CiliumPeers)> = Vec::new();
        if let Some(list) = self.from_endpoints.or(self.to_endpoints) {
            let parsed = each(list, &field("Endpoints"), selector::parse)?;
            said.push(("Endpoints", CiliumPeers::Endpoints(parsed)));
        }
        if let Some(list) = self.from_cidr.or(self.to_cidr) {
            said.push(("CIDR", CiliumPeers::Cidrs(each(list, &field("CIDR"), |text, at| block(&text, at))?)));
        }
        if let Some(list) = self.from_cidr_set.or(self.to_cidr_set) {
            said.push(("CIDRSet", CiliumPeers::CidrSets(each(list, &field("CIDRSet"), WireCidrSet::parse)?)));
        }
        if let Some(list) = self.from_entities.or(self.to_entities) {
            let parsed = each(list, &field("Entities"), |text, at| entity(&text, place, at))?;
            said.push(("Entities", CiliumPeers::Entities(parsed)));
        }
        if let Some(list) = self.to_services {
            let parsed = each(list, &at_services, |wire, at| wire.parse(place.own, at))?;
            said.push(("Services", CiliumPeers::Services(parsed)));
        }
        if let Some(list) = self.to_fqdns {
            said.push(("FQDNs", CiliumPeers::Names(each(list, &at_names, WireName::parse)?)));
        }
        let mut said = said.into_iter();
        let peers = said.next();
        if let (Some((first, _)), Some((second, _))) = (&peers, said.next()) {
            let side = if place.ingress { "from" } else { "to" };
            return field(second).refuse("", format!("can't stand beside {side}{first}: write two entries"));
        }
        let peers = peers.map_or(CiliumPeers::Unsaid, |(_, peers)| peers);
        Ok(CiliumEntry { peers, ports, icmps, dns, proxy, http })
    }
}

/// Every element of a list that must have one: Cilium reads the empty list as nobody, and people as anybody.
fn each<W, T>(list: Vec<W>, at: &At, parse: impl Fn(W, &At) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    if list.is_empty() {
        return at.refuse("", "must not be empty: leave it out for anybody");
    }
    at.at_most(&list, MAX_PEERS)?;
    list.into_iter().enumerate().map(|(i, wire)| parse(wire, &at.index(i))).collect()
}

/// A block, or one address.
fn block(text: &str, at: &At) -> Result<IpNet, Fault> {
    match text.parse() {
        Ok(address) => Ok(IpNet::new_assert(address, if address.is_ipv4() { 32 } else { 128 })),
        Err(_) => check::cidr(text, at),
    }
}

impl WireCidrSet {
    fn parse(self, at: &At) -> Result<CiliumCidrSet, Fault> {
        at.unsupported(&[
            ("cidrGroupRef", self.cidr_group_ref.is_some()),
            ("cidrGroupSelector", self.cidr_group_selector.is_some()),
        ])?;
        let at_cidr = at.field("cidr");
        let cidr = block(&self.cidr.ok_or_else(|| at_cidr.missing())?, &at_cidr)?;
        let at = at.field("except");
        at.at_most(&self.except, MAX_EXCEPTS)?;
        let mut except = Vec::with_capacity(self.except.len());
        for (i, text) in self.except.iter().enumerate() {
            let at = at.index(i);
            let net = block(text, &at)?;
            if !cidr.contains(&net) || net == cidr {
                return at.refuse(text, format!("must lie strictly inside {cidr}"));
            }
            except.push(net);
        }
        Ok(CiliumCidrSet { cidr, except })
    }
}

fn entity(text: &str, place: Place<'_>, at: &At) -> Result<CiliumEntity, Fault> {
    let Some(entity) = CiliumEntity::ALL.into_iter().find(|entity| entity.as_str() == text) else {
        let known = CiliumEntity::ALL.map(CiliumEntity::as_str).join(", ");
        return at.refuse(text, format!("is not supported; supported are {known}"));
    };
    // Proxies, which know who somebody is by a certificate, have no word for it.
    if place.deny && entity == CiliumEntity::Unmanaged {
        return at.refuse(text, "is not supported in a deny entry");
    }
    Ok(entity)
}

fn icmps(wire: Vec<WireIcmps>, at: &At) -> Result<Vec<CiliumIcmp>, Fault> {
    let fields = wire.into_iter().enumerate().flat_map(|(i, icmps)| {
        let at = at.index(i).field("fields");
        icmps.fields.into_iter().enumerate().map(move |(i, field)| (at.index(i), field))
    });
    let fields: Vec<(At, WireIcmp)> = fields.collect();
    at.at_most(&fields, MAX_PORTS)?;
    let one = |(at, wire): (At, WireIcmp)| {
        let v6 = match wire.family.as_deref() {
            None | Some("" | "IPv4") => false,
            Some("IPv6") => true,
            Some(text) => return at.field("family").refuse(text, "must be IPv4 or IPv6"),
        };
        let at = at.field("type");
        let bad = |text: &str| at.fault(text, "must be 0 to 255, or the name of a type of that family");
        match wire.r#type {
            None => Err(at.missing()),
            Some(WirePort::Name(text)) => icmp::named(v6, &text).ok_or_else(|| bad(&text)),
            Some(WirePort::Number(number)) => {
                u8::try_from(number).map(|kind| CiliumIcmp { v6, kind }).map_err(|_| bad(&number.to_string()))
            }
        }
    };
    fields.into_iter().map(one).collect()
}

/// What `rules` says.
#[derive(Default)]
struct Read {
    dns: Vec<NamePattern>,
    http: Vec<HttpRule>,
}

fn rules(wire: WireL7, alone: bool, ports: &[CiliumPort], place: Place<'_>, at: &At) -> Result<Read, Fault> {
    at.unsupported(&[
        ("kafka", wire.kafka.is_some()),
        ("l7", wire.l7.is_some()),
        ("l7proto", wire.l7proto.is_some()),
    ])?;
    let (list, at_dns) = match (wire.dns, wire.http) {
        (None, None) => return Ok(Read::default()),
        (Some(_), Some(_)) => {
            return at.field("http").refuse("", "can't stand beside dns: write two entries");
        }
        (Some(list), None) => (list, at.field("dns")),
        (None, Some(list)) => return http(list, alone, ports, place, &at.field("http")),
    };
    if place.ingress || place.deny || place.nodes {
        return at_dns.refuse("", "is not supported here: only where egress of workloads is allowed");
    }
    if !alone {
        return at_dns.refuse("", "can't stand beside other elements of toPorts: write two entries");
    }
    let numbered = |port: &CiliumPort| matches!(port.port, Some(PortRef::Number(_)));
    let datagrams = |port: &CiliumPort| port.protocol != Some(Protocol::Sctp);
    if !ports.iter().all(|port| numbered(port) && datagrams(port)) {
        return at_dns.refuse("", "needs ports by number, such as 53, of UDP or TCP");
    }
    Ok(Read { dns: each(list, &at_dns, WireName::parse)?, http: Vec::new() })
}

fn http(
    list: Vec<WireHttp>,
    alone: bool,
    ports: &[CiliumPort],
    place: Place<'_>,
    at: &At,
) -> Result<Read, Fault> {
    if place.ingress || place.deny || place.nodes {
        return at.refuse("", "is not supported here: only where egress of workloads is allowed");
    }
    if !alone {
        return at.refuse("", "can't stand beside other elements of toPorts: write two entries");
    }
    if !ports.iter().all(|port| port.protocol == Some(Protocol::Tcp)) {
        return at.refuse("", "needs ports of protocol TCP");
    }
    at.at_most(&list, MAX_HTTP_RULES)?;
    Ok(Read { dns: Vec::new(), http: each(list, at, WireHttp::parse)? })
}

impl WireListener {
    /// All elements of `toPorts` name the same one, as an entry has one proxy.
    fn parse(self, place: Place<'_>, has_rules: bool, at: &At) -> Result<String, Fault> {
        at.unsupported(&[
            ("envoyConfig", self.envoy_config.is_some()),
            ("priority", self.priority.is_some()),
        ])?;
        if place.ingress || place.deny || place.nodes {
            return at.refuse("", "is not supported here: only where egress of workloads is allowed");
        }
        if has_rules {
            return at.refuse("", "can't stand beside rules: write two entries");
        }
        let at = at.field("name");
        let Some(name) = self.name else { return Err(at.missing()) };
        if !is_proxy_name(&name) {
            return at.refuse(&name, PROXY_NAME);
        }
        if name == NODE_PROXY {
            return at.refuse(&name, "reads what rules.http lets through: say that instead");
        }
        Ok(name)
    }
}

/// What `toPorts` says.
struct ToPorts {
    ports: Vec<CiliumPort>,
    read: Read,
    proxy: Option<String>,
}

fn to_ports(wire: Vec<WirePortRule>, place: Place<'_>, at: &At) -> Result<ToPorts, Fault> {
    at.at_most(&wire, MAX_TO_PORTS)?;
    let mut out = Vec::new();
    let mut read = Read::default();
    let mut proxies: Vec<Option<String>> = Vec::new();
    let alone = wire.len() == 1;
    for (i, rule) in wire.into_iter().enumerate() {
        let at = at.index(i);
        at.unsupported(&[
            ("terminatingTLS", rule.terminating_tls.is_some()),
            ("originatingTLS", rule.originating_tls.is_some()),
            ("serverNames", rule.server_names.is_some()),
        ])?;
        let at_listener = at.field("listener");
        let has_rules = rule.rules.is_some();
        let proxy =
            rule.listener.map(|listener| listener.parse(place, has_rules, &at_listener)).transpose()?;
        if proxies.first().is_some_and(|first| *first != proxy) {
            return at_listener.refuse("", "must be the same of all elements of toPorts: write two entries");
        }
        proxies.push(proxy);
        let at_ports = at.field("ports");
        if rule.ports.is_empty() {
            return Err(at_ports.missing());
        }
        at_ports.at_most(&rule.ports, MAX_PORTS)?;
        for (i, port) in rule.ports.into_iter().enumerate() {
            let at = at_ports.index(i);
            let port = port.parse(&at)?;
            if place.nodes && place.ingress && matches!(port.port, Some(PortRef::Name(_))) {
                return at.field("port").refuse("", "must be a number: the ports of nodes have no names");
            }
            out.push(port);
        }
        if let Some(rules) = rule.rules {
            read = self::rules(rules, alone, &out, place, &at.field("rules"))?;
        }
    }
    Ok(ToPorts { ports: out, read, proxy: proxies.into_iter().next().flatten() })
}

impl WireCiliumPort {
    fn parse(self, at: &At) -> Result<CiliumPort, Fault> {
        let at_protocol = at.field("protocol");
        let protocol = match self.protocol.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None | Some("" | "ANY") => None,
            Some(text) => match Protocol::from_name(text) {
                Some(protocol) => Some(protocol),
                None => {
                    return at_protocol
                        .refuse(text, "is not supported; supported are TCP, UDP, SCTP and ANY");
                }
            },
        };
        let at_port = at.field("port");
        let port = match self.port {
            None => return Err(at_port.missing()),
            Some(WirePort::Number(0)) => None,
            // Cilium writes numbers as strings.
            Some(WirePort::Name(text)) => match text.parse::<i64>() {
                Ok(0) => None,
                Ok(number) => Some(PortRef::Number(check::port(number, &at_port)?)),
                // Kubernetes lets names be written in capitals here.
                Err(_) => Some(WirePort::Name(text.to_ascii_lowercase()).parse(&at_port)?),
            },
            Some(number) => Some(number.parse(&at_port)?),
        };
        // As in Cilium, 0 is the absence.
        let end_port = port::end(self.end_port.filter(|end| *end != 0), port.as_ref(), &at.field("endPort"))?;
        Ok(CiliumPort { protocol, port, end_port })
    }
}
