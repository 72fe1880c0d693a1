//! `policy.networking.k8s.io ClusterNetworkPolicy`: rules of the administrator in front of all other policies (the tier
//! Admin) or behind them (Baseline).

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    LabelSelector, Meta, Protocol, check,
    error::{At, Fault},
    network_policy::pod_selector,
    selector::WireSelector,
};

/// Rules of one direction, peers of one rule, and so on, as in the API.
const MAX_LIST: usize = 25;
const MAX_PRIORITY: i64 = 1_000;
/// Characters of a rule's name.
const MAX_NAME: usize = 100;

/// One object. Its name has no namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ClusterPolicy {
    pub meta: Meta,
    pub tier: ClusterTier,
    /// 0 to 1,000; the lower goes first.
    pub priority: u16,
    pub subject: ClusterPods,
    /// The first that matches decides.
    pub ingress: Vec<ClusterRule>,
    pub egress: Vec<ClusterRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ClusterTier {
    /// Before all policies of namespaces.
    Admin,
    /// For what no policy of a namespace has decided.
    Baseline,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ClusterRule {
    /// For people; may be empty.
    pub name: String,
    pub action: ClusterAction,
    /// Any of them; never empty.
    pub peers: Vec<ClusterPeer>,
    /// Empty: all ports and protocols.
    pub ports: Vec<ClusterPort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ClusterAction {
    Accept,
    Deny,
    /// The tier has nothing more to say.
    Pass,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ClusterPeer {
    Pods(ClusterPods),
    /// Of egress rules: addresses outside the mesh, and all workloads if the pods' range lies in one of the blocks.
    Networks(Vec<IpNet>),
}

/// Workloads, by their namespace and their labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPods {
    /// Over the labels of Namespace objects and their names.
    pub namespaces: LabelSelector,
    /// None: `namespaces` stands alone, and means every workload of these.
    pub pods: Option<LabelSelector>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ClusterPort {
    /// Inclusive; None: every port of the protocol.
    Range { protocol: Protocol, ports: Option<(u16, u16)> },
    /// Of whichever protocol.
    Named(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireClusterPolicy {
    tier: Option<String>,
    priority: Option<i64>,
    subject: Option<WirePeer>,
    #[serde(default)]
    ingress: Vec<WireRule>,
    #[serde(default)]
    egress: Vec<WireRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRule {
    #[serde(default)]
    name: String,
    action: Option<String>,
    from: Option<Vec<WirePeer>>,
    to: Option<Vec<WirePeer>>,
    protocols: Option<Vec<WireProtocol>>,
}

/// A subject as well, which has the first two alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePeer {
    namespaces: Option<WireSelector>,
    pods: Option<WirePods>,
    networks: Option<Vec<String>>,
    // Refused.
    nodes: Option<IgnoredAny>,
    domain_names: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePods {
    namespace_selector: Option<WireSelector>,
    pod_selector: Option<WireSelector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireProtocol {
    tcp: Option<WireTransport>,
    udp: Option<WireTransport>,
    sctp: Option<WireTransport>,
    destination_named_port: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireTransport {
    destination_port: Option<WireDestination>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDestination {
    number: Option<i64>,
    range: Option<WireRange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRange {
    start: i64,
    end: i64,
}

impl WireClusterPolicy {
    pub(super) fn parse(self, meta: Meta) -> Result<ClusterPolicy, Fault> {
        let at = At::new("spec");
        let (at_tier, at_priority, at_subject) =
            (at.field("tier"), at.field("priority"), at.field("subject"));
        let tier = match self.tier.as_deref() {
            Some("Admin") => ClusterTier::Admin,
            Some("Baseline") => ClusterTier::Baseline,
            Some(other) => return at_tier.refuse(other, "must be Admin or Baseline"),
            None => return Err(at_tier.missing()),
        };
        let priority = self.priority.ok_or_else(|| at_priority.missing())?;
        let priority = match u16::try_from(priority) {
            Ok(number) if priority <= MAX_PRIORITY => number,
            _ => return at_priority.refuse(priority, "must be 0 to 1000"),
        };
        let subject = self.subject.ok_or_else(|| at_subject.missing())?;
        if subject.networks.is_some() {
            return at_subject.field("networks").refuse("", "can't be a subject: write namespaces or pods");
        }
        let ClusterPeer::Pods(subject) = subject.parse(&at_subject)? else {
            return Err(at_subject.missing());
        };
        Ok(ClusterPolicy {
            meta,
            tier,
            priority,
            subject,
            ingress: rules(self.ingress, true, &at.field("ingress"))?,
            egress: rules(self.egress, false, &at.field("egress"))?,
        })
    }
}

fn rules(wire: Vec<WireRule>, ingress: bool, at: &At) -> Result<Vec<ClusterRule>, Fault> {
    at.at_most(&wire, MAX_LIST)?;
    wire.into_iter().enumerate().map(|(i, rule)| rule.parse(ingress, &at.index(i))).collect()
}

impl WireRule {
    fn parse(self, ingress: bool, at: &At) -> Result<ClusterRule, Fault> {
        if self.name.chars().count() > MAX_NAME {
            return at.field("name").refuse(self.name, format!("must have at most {MAX_NAME} characters"));
        }
        let at_action = at.field("action");
        let action = match self.action.as_deref() {
            Some("Accept") => ClusterAction::Accept,
            Some("Deny") => ClusterAction::Deny,
            Some("Pass") => ClusterAction::Pass,
            Some(other) => return at_action.refuse(other, "must be Accept, Deny or Pass"),
            None => return Err(at_action.missing()),
        };
        let (own, stranger) = if ingress { ("from", "to") } else { ("to", "from") };
        let (peers, other) = if ingress { (self.from, self.to) } else { (self.to, self.from) };
        if other.is_some() {
            return at.field(stranger).refuse("", "belongs to the other direction");
        }
        let at_peers = at.field(own);
        let peers = peers.filter(|peers| !peers.is_empty()).ok_or_else(|| at_peers.missing())?;
        at_peers.at_most(&peers, MAX_LIST)?;
        let mut parsed = Vec::with_capacity(peers.len());
        for (i, peer) in peers.into_iter().enumerate() {
            let at = at_peers.index(i);
            if ingress && peer.networks.is_some() {
                return at.field("networks").refuse("", "is not supported in an ingress rule, as in the API");
            }
            parsed.push(peer.parse(&at)?);
        }
        let ports = match self.protocols {
            None => Vec::new(),
            Some(list) => protocols(list, &parsed, &at.field("protocols"))?,
        };
        Ok(ClusterRule { name: self.name, action, peers: parsed, ports })
    }
}

impl WirePeer {
    fn parse(self, at: &At) -> Result<ClusterPeer, Fault> {
        at.unsupported(&[("nodes", self.nodes.is_some()), ("domainNames", self.domain_names.is_some())])?;
        match (self.namespaces, self.pods, self.networks) {
            (Some(namespaces), None, None) => {
                let namespaces = WireSelector::parse(namespaces, &at.field("namespaces"))?;
                Ok(ClusterPeer::Pods(ClusterPods { namespaces, pods: None }))
            }
            (None, Some(wire), None) => {
                let at = at.field("pods");
                let at_pods = at.field("podSelector");
                let pods = wire.pod_selector.ok_or_else(|| at_pods.missing())?;
                let namespaces = match wire.namespace_selector {
                    Some(wire) => WireSelector::parse(wire, &at.field("namespaceSelector"))?,
                    None => LabelSelector::default(),
                };
                let pods = Some(pod_selector(pods, &at_pods)?);
                Ok(ClusterPeer::Pods(ClusterPods { namespaces, pods }))
            }
            (None, None, Some(networks)) => {
                let at = at.field("networks");
                if networks.is_empty() {
                    return Err(at.missing());
                }
                at.at_most(&networks, MAX_LIST)?;
                let parsed = networks.iter().enumerate().map(|(i, text)| check::cidr(text, &at.index(i)));
                Ok(ClusterPeer::Networks(parsed.collect::<Result<_, _>>()?))
            }
            _ => at.refuse("", "must have exactly one of namespaces, pods and, where it is egress, networks"),
        }
    }
}

fn protocols(wire: Vec<WireProtocol>, peers: &[ClusterPeer], at: &At) -> Result<Vec<ClusterPort>, Fault> {
    if wire.is_empty() {
        return at.refuse("", "must not be empty: leave it out for all protocols");
    }
    at.at_most(&wire, MAX_LIST)?;
    let mut out = Vec::with_capacity(wire.len());
    for (i, one) in wire.into_iter().enumerate() {
        let at = at.index(i);
        let transports = [
            (Protocol::Tcp, "tcp", one.tcp),
            (Protocol::Udp, "udp", one.udp),
            (Protocol::Sctp, "sctp", one.sctp),
        ];
        let mut said: Vec<ClusterPort> = Vec::new();
        for (protocol, field, transport) in transports {
            if let Some(transport) = transport {
                let at = at.field(field).field("destinationPort");
                let ports = transport.destination_port.map(|wire| wire.parse(&at)).transpose()?;
                said.push(ClusterPort::Range { protocol, ports });
            }
        }
        if let Some(name) = one.destination_named_port {
            let at = at.field("destinationNamedPort");
            check::port_name(&name, &at)?;
            if peers.iter().any(|peer| matches!(peer, ClusterPeer::Networks(_))) {
                return at.refuse(name, "can't stand beside networks, which name no ports");
            }
            said.push(ClusterPort::Named(name));
        }
        let mut said = said.into_iter();
        match (said.next(), said.next()) {
            (Some(port), None) => out.push(port),
            _ => return at.refuse("", "must have exactly one of tcp, udp, sctp and destinationNamedPort"),
        }
    }
    Ok(out)
}

impl WireDestination {
    fn parse(self, at: &At) -> Result<(u16, u16), Fault> {
        match (self.number, self.range) {
            (Some(number), None) => {
                let number = check::port(number, &at.field("number"))?;
                Ok((number, number))
            }
            (None, Some(WireRange { start, end })) => {
                let at = at.field("range");
                let first = check::port(start, &at.field("start"))?;
                let last = check::port(end, &at.field("end"))?;
                if last <= first {
                    return at.field("end").refuse(last, format!("must be more than {first} (start)"));
                }
                Ok((first, last))
            }
            _ => at.refuse("", "must have exactly one of number and range"),
        }
    }
}

impl ClusterTier {
    fn as_str(self) -> &'static str {
        match self {
            ClusterTier::Admin => "Admin",
            ClusterTier::Baseline => "Baseline",
        }
    }
}

impl ClusterAction {
    fn as_str(self) -> &'static str {
        match self {
            ClusterAction::Accept => "Accept",
            ClusterAction::Deny => "Deny",
            ClusterAction::Pass => "Pass",
        }
    }
}

pub(super) fn render(policy: &ClusterPolicy) -> Value {
    let mut out = Map::new();
    out.insert("tier".to_owned(), json!(policy.tier.as_str()));
    out.insert("priority".to_owned(), json!(policy.priority));
    out.insert("subject".to_owned(), render_pods(&policy.subject));
    for (list, side, rules) in [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)] {
        if !rules.is_empty() {
            out.insert(list.to_owned(), rules.iter().map(|rule| render_rule(rule, side)).collect());
        }
    }
    Value::Object(out)
}

fn render_rule(rule: &ClusterRule, side: &str) -> Value {
    let mut out = json!({"action": rule.action.as_str()});
    if !rule.name.is_empty() {
        out["name"] = json!(rule.name);
    }
    let peer = |peer: &ClusterPeer| match peer {
        ClusterPeer::Pods(pods) => render_pods(pods),
        ClusterPeer::Networks(networks) => json!({ "networks": networks }),
    };
    out[side] = rule.peers.iter().map(peer).collect();
    if !rule.ports.is_empty() {
        out["protocols"] = rule.ports.iter().map(render_port).collect();
    }
    out
}

fn render_pods(pods: &ClusterPods) -> Value {
    match &pods.pods {
        None => json!({"namespaces": pods.namespaces.to_json()}),
        Some(selector) => json!({"pods": {
            "namespaceSelector": pods.namespaces.to_json(), "podSelector": selector.to_json(),
        }}),
    }
}

fn render_port(port: &ClusterPort) -> Value {
    let ClusterPort::Range { protocol, ports } = port else {
        let ClusterPort::Named(name) = port else { return Value::Null };
        return json!({ "destinationNamedPort": name });
    };
    let destination = match ports {
        None => json!({}),
        Some((first, last)) if first == last => json!({"destinationPort": {"number": first}}),
        Some((first, last)) => json!({"destinationPort": {"range": {"start": first, "end": last}}}),
    };
    json!({ protocol.as_str().to_ascii_lowercase(): destination })
}
