//! `networking.k8s.io/v1 NetworkPolicy`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    LabelSelector, Meta, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, check,
    error::{At, Fault},
    port::{self, WirePort},
    selector::WireSelector,
};
use crate::{identity::is_policy_label, policy::cover};

pub(super) const MAX_RULES: usize = 100;
pub(super) const MAX_PEERS: usize = 100;
const MAX_PORTS: usize = 100;
pub(super) const MAX_EXCEPTS: usize = 64;
/// Peers times ports, over all rules of a direction, an ipBlock counted by the blocks that are left of it: what a
/// small text can make of a kernel's maps has a bound.
pub(super) const MAX_COMBINATIONS: usize = 16_384;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WirePolicy {
    pod_selector: Option<WireSelector>,
    #[serde(default)]
    policy_types: Vec<String>,
    #[serde(default)]
    ingress: Vec<WireIngress>,
    #[serde(default)]
    egress: Vec<WireEgress>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIngress {
    #[serde(default)]
    from: Vec<WirePeer>,
    #[serde(default)]
    ports: Vec<WirePolicyPort>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEgress {
    #[serde(default)]
    to: Vec<WirePeer>,
    #[serde(default)]
    ports: Vec<WirePolicyPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePeer {
    pod_selector: Option<WireSelector>,
    namespace_selector: Option<WireSelector>,
    ip_block: Option<WireIpBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIpBlock {
    cidr: String,
    #[serde(default)]
    except: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePolicyPort {
    protocol: Option<String>,
    port: Option<WirePort>,
    end_port: Option<i64>,
}

impl WirePolicy {
    pub(super) fn parse(self, meta: Meta) -> Result<NetworkPolicy, Fault> {
        let at = At::new("spec");
        // As in Kubernetes, an absent selector is the empty one: every pod of the namespace.
        let pod_selector = match self.pod_selector {
            Some(wire) => pod_selector(wire, &at.field("podSelector"))?,
            None => LabelSelector::default(),
        };
        let (mut ingress_selected, mut egress_selected) = (false, false);
        for (i, policy_type) in self.policy_types.iter().enumerate() {
            match policy_type.as_str() {
                "Ingress" => ingress_selected = true,
                "Egress" => egress_selected = true,
                other => {
                    return at.field("policyTypes").index(i).refuse(other, "must be Ingress or Egress");
                }
            }
        }
        if self.policy_types.is_empty() {
            ingress_selected = true;
            egress_selected = !self.egress.is_empty();
        }
        let ingress = self.ingress.into_iter().map(|r| (r.from, r.ports)).collect();
        let egress = self.egress.into_iter().map(|r| (r.to, r.ports)).collect();
        Ok(NetworkPolicy {
            meta,
            pod_selector,
            ingress_selected,
            egress_selected,
            ingress: rules(ingress, "from", &at.field("ingress"))?,
            egress: rules(egress, "to", &at.field("egress"))?,
        })
    }
}

fn rules(
    wire: Vec<(Vec<WirePeer>, Vec<WirePolicyPort>)>,
    peers_field: &str,
    at: &At,
) -> Result<Vec<NetworkPolicyRule>, Fault> {
    at.at_most(&wire, MAX_RULES)?;
    let mut out: Vec<NetworkPolicyRule> = Vec::new();
    for (i, (wire_peers, wire_ports)) in wire.into_iter().enumerate() {
        let at = at.index(i);
        let (at_peers, at_ports) = (at.field(peers_field), at.field("ports"));
        at_peers.at_most(&wire_peers, MAX_PEERS)?;
        at_ports.at_most(&wire_ports, MAX_PORTS)?;
        let peers = wire_peers
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(&at_peers.index(i)))
            .collect::<Result<_, _>>()?;
        let ports = wire_ports
            .into_iter()
            .enumerate()
            .map(|(i, wire)| wire.parse(&at_ports.index(i)))
            .collect::<Result<_, _>>()?;
        out.push(NetworkPolicyRule { peers, ports });
    }
    let combinations: usize = out.iter().map(combinations).sum();
    if combinations > MAX_COMBINATIONS {
        return at.refuse(
            "",
            format!("has {combinations} combinations of peers and ports, but at most {MAX_COMBINATIONS} are allowed"),
        );
    }
    Ok(out)
}

fn combinations(rule: &NetworkPolicyRule) -> usize {
    let blocks = |peer: &NetworkPolicyPeer| match peer {
        NetworkPolicyPeer::Pods { .. } => 1,
        NetworkPolicyPeer::IpBlock { cidr, except } => cover(*cidr, except).len(),
    };
    rule.peers.iter().map(blocks).sum::<usize>().max(1) * rule.ports.len().max(1)
}

/// A selector over workloads. A label that identities leave out can't be selected by: better refused here than
/// a rule that silently never matches.
pub(super) fn pod_selector(wire: WireSelector, at: &At) -> Result<LabelSelector, Fault> {
    let selector = wire.parse(at)?;
    if let Some(key) = selector.keys().find(|key| !is_policy_label(key)) {
        return at
            .refuse(key, "is a label that differs per copy of a workload and is no part of its identity");
    }
    Ok(selector)
}

impl WirePeer {
    fn parse(self, at: &At) -> Result<NetworkPolicyPeer, Fault> {
        match self {
            WirePeer { pod_selector: None, namespace_selector: None, ip_block: Some(block) } => {
                block.parse(&at.field("ipBlock"))
            }
            WirePeer { ip_block: Some(_), .. } => {
                at.field("ipBlock").refuse("", "can't stand beside podSelector or namespaceSelector")
            }
            WirePeer { pod_selector: None, namespace_selector: None, ip_block: None } => {
                at.refuse("", "must have a podSelector, a namespaceSelector or an ipBlock")
            }
            WirePeer { pod_selector: pod, namespace_selector, ip_block: None } => {
                Ok(NetworkPolicyPeer::Pods {
                    pod: pod.map(|wire| pod_selector(wire, &at.field("podSelector"))).transpose()?,
                    namespace: namespace_selector
                        .map(|wire| wire.parse(&at.field("namespaceSelector")))
                        .transpose()?,
                })
            }
        }
    }
}

impl WireIpBlock {
    fn parse(self, at: &At) -> Result<NetworkPolicyPeer, Fault> {
        let cidr = check::cidr(&self.cidr, &at.field("cidr"))?;
        let at = at.field("except");
        at.at_most(&self.except, MAX_EXCEPTS)?;
        let mut except = Vec::new();
        for (i, text) in self.except.iter().enumerate() {
            let at = at.index(i);
            let net = check::cidr(text, &at)?;
            if !cidr.contains(&net) || net == cidr {
                return at.refuse(text, format!("must lie strictly inside {cidr}"));
            }
            except.push(net);
        }
        Ok(NetworkPolicyPeer::IpBlock { cidr, except })
    }
}

impl WirePolicyPort {
    fn parse(self, at: &At) -> Result<NetworkPolicyPort, Fault> {
        let protocol = port::protocol(self.protocol.as_deref(), &at.field("protocol"))?;
        let port = self.port.map(|wire| wire.parse(&at.field("port"))).transpose()?;
        let end_port = port::end(self.end_port, port.as_ref(), &at.field("endPort"))?;
        Ok(NetworkPolicyPort { protocol, port, end_port })
    }
}

pub(super) fn render(policy: &NetworkPolicy) -> Value {
    let mut out = Map::new();
    out.insert("podSelector".to_owned(), policy.pod_selector.to_json());
    let mut types = Vec::new();
    if policy.ingress_selected {
        types.push("Ingress");
    }
    if policy.egress_selected {
        types.push("Egress");
    }
    out.insert("policyTypes".to_owned(), json!(types));
    for (field, peers_field, rules) in
        [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)]
    {
        if !rules.is_empty() {
            out.insert(field.to_owned(), rules.iter().map(|r| render_rule(r, peers_field)).collect());
        }
    }
    Value::Object(out)
}

fn render_rule(rule: &NetworkPolicyRule, peers_field: &str) -> Value {
    let mut out = Map::new();
    if !rule.peers.is_empty() {
        out.insert(peers_field.to_owned(), rule.peers.iter().map(render_peer).collect());
    }
    if !rule.ports.is_empty() {
        out.insert("ports".to_owned(), rule.ports.iter().map(render_port).collect());
    }
    Value::Object(out)
}

fn render_peer(peer: &NetworkPolicyPeer) -> Value {
    let mut out = Map::new();
    match peer {
        NetworkPolicyPeer::Pods { pod, namespace } => {
            if let Some(selector) = pod {
                out.insert("podSelector".to_owned(), selector.to_json());
            }
            if let Some(selector) = namespace {
                out.insert("namespaceSelector".to_owned(), selector.to_json());
            }
        }
        NetworkPolicyPeer::IpBlock { cidr, except } => {
            let mut block = json!({"cidr": cidr});
            if !except.is_empty() {
                block["except"] = json!(except);
            }
            out.insert("ipBlock".to_owned(), block);
        }
    }
    Value::Object(out)
}

fn render_port(policy_port: &NetworkPolicyPort) -> Value {
    let mut out = Map::new();
    out.insert("protocol".to_owned(), json!(policy_port.protocol.as_str()));
    if let Some(reference) = &policy_port.port {
        out.insert("port".to_owned(), port::render(reference));
    }
    if let Some(end) = policy_port.end_port {
        out.insert("endPort".to_owned(), json!(end));
    }
    Value::Object(out)
}
