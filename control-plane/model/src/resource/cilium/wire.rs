//! From JSON, as Cilium's custom resources spell it.

use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    super::{
        Kind, Meta, PortRef, Protocol, check,
        error::{At, Fault},
        network_policy::{MAX_COMBINATIONS, MAX_EXCEPTS, MAX_PEERS, MAX_RULES},
        port::{self, WirePort},
        selector::WireSelector,
    },
    CiliumCidrSet, CiliumEntity, CiliumEntry, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule, CiliumSide,
    selector,
};
use crate::policy::cover;

/// Rules of one object.
const MAX_SPECS: usize = 16;
/// Ports of one element of `toPorts`, as in Cilium.
pub(super) const MAX_PORTS: usize = 40;
/// Elements of `toPorts`.
const MAX_TO_PORTS: usize = 40;

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
    // Refused.
    node_selector: Option<IgnoredAny>,
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
    authentication: Option<WireAuthentication>,
    // Refused.
    from_requires: Option<IgnoredAny>,
    to_requires: Option<IgnoredAny>,
    from_nodes: Option<IgnoredAny>,
    to_nodes: Option<IgnoredAny>,
    from_groups: Option<IgnoredAny>,
    to_groups: Option<IgnoredAny>,
    to_services: Option<IgnoredAny>,
    #[serde(rename = "toFQDNs")]
    to_fqdns: Option<IgnoredAny>,
    icmps: Option<IgnoredAny>,
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
    // Refused: they need a proxy.
    rules: Option<IgnoredAny>,
    listener: Option<IgnoredAny>,
    #[serde(rename = "terminatingTLS")]
    terminating_tls: Option<IgnoredAny>,
    #[serde(rename = "originatingTLS")]
    originating_tls: Option<IgnoredAny>,
    server_names: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireCiliumPort {
    port: Option<WirePort>,
    protocol: Option<String>,
    end_port: Option<i64>,
}

/// What an entry may say, by the list that it stands in.
#[derive(Clone, Copy)]
struct Place {
    ingress: bool,
    deny: bool,
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
        at.unsupported(&[("nodeSelector", self.node_selector.is_some())])?;
        let at_subject = at.field("endpointSelector");
        let subject =
            selector::parse(self.endpoint_selector.ok_or_else(|| at_subject.missing())?, &at_subject)?;
        let own = &meta.name.namespace;
        if let (false, Some(namespaces)) = (own.is_empty(), &subject.namespaces) {
            let here = [(super::super::NAMESPACE_NAME_LABEL.to_owned(), own.clone())].into();
            if !namespaces.matches(&here) {
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
        let side = |allow, deny, ingress, default_deny| -> Result<CiliumSide, Fault> {
            let (name, deny_name) =
                if ingress { ("ingress", "ingressDeny") } else { ("egress", "egressDeny") };
            Ok(CiliumSide {
                allow: entries(allow, Place { ingress, deny: false }, &at.field(name))?,
                deny: entries(deny, Place { ingress, deny: true }, &at.field(deny_name))?,
                default_deny,
            })
        };
        Ok(CiliumRule {
            subject,
            ingress: side(self.ingress, self.ingress_deny, true, said.ingress)?,
            egress: side(self.egress, self.egress_deny, false, said.egress)?,
        })
    }
}

fn entries(wire: Vec<WireEntry>, place: Place, at: &At) -> Result<Vec<CiliumEntry>, Fault> {
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
    };
    let ports: usize = entry.ports.iter().map(|port| port.protocols().len()).sum();
    peers * ports.max(1)
}

impl WireEntry {
    fn parse(self, place: Place, at: &At) -> Result<CiliumEntry, Fault> {
        at.unsupported(&[
            ("fromRequires", self.from_requires.is_some()),
            ("toRequires", self.to_requires.is_some()),
            ("fromNodes", self.from_nodes.is_some()),
            ("toNodes", self.to_nodes.is_some()),
            ("fromGroups", self.from_groups.is_some()),
            ("toGroups", self.to_groups.is_some()),
            ("toServices", self.to_services.is_some()),
            ("toFQDNs", self.to_fqdns.is_some()),
            ("icmps", self.icmps.is_some()),
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
        let ports = to_ports(self.to_ports, &at.field("toPorts"))?;
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
        let mut said = said.into_iter();
        let peers = said.next();
        if let (Some((first, _)), Some((second, _))) = (&peers, said.next()) {
            let side = if place.ingress { "from" } else { "to" };
            return field(second).refuse("", format!("can't stand beside {side}{first}: write two entries"));
        }
        Ok(CiliumEntry { peers: peers.map_or(CiliumPeers::Unsaid, |(_, peers)| peers), ports })
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

fn entity(text: &str, place: Place, at: &At) -> Result<CiliumEntity, Fault> {
    let Some(entity) = CiliumEntity::ALL.into_iter().find(|entity| entity.as_str() == text) else {
        let known = CiliumEntity::ALL.map(CiliumEntity::as_str).join(", ");
        return at.refuse(text, format!("is not supported; supported are {known}"));
    };
    // Its own node is admitted to a workload whatever policies say, and pods that nobody knows have no number that a
    // denial could name.
    if place.deny && matches!(entity, CiliumEntity::Host | CiliumEntity::Cluster | CiliumEntity::Health) {
        return at.refuse(text, "is not supported in a deny entry: the data plane does not enforce it yet");
    }
    Ok(entity)
}

fn to_ports(wire: Vec<WirePortRule>, at: &At) -> Result<Vec<CiliumPort>, Fault> {
    at.at_most(&wire, MAX_TO_PORTS)?;
    let mut out = Vec::new();
    for (i, rule) in wire.into_iter().enumerate() {
        let at = at.index(i);
        at.unsupported(&[
            ("rules", rule.rules.is_some()),
            ("listener", rule.listener.is_some()),
            ("terminatingTLS", rule.terminating_tls.is_some()),
            ("originatingTLS", rule.originating_tls.is_some()),
            ("serverNames", rule.server_names.is_some()),
        ])?;
        let at = at.field("ports");
        if rule.ports.is_empty() {
            return Err(at.missing());
        }
        at.at_most(&rule.ports, MAX_PORTS)?;
        for (i, port) in rule.ports.into_iter().enumerate() {
            out.push(port.parse(&at.index(i))?);
        }
    }
    Ok(out)
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
