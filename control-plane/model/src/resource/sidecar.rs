//! `networking.istio.io Sidecar`, the part that says what workloads call: `egress` with its hosts. What would change how
//! traffic is captured, or what happens to addresses outside of the mesh, is refused.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    EgressHost, EgressNamespace, HostPattern, Labels, Meta, Sidecar, check,
    error::{At, Fault},
};

/// Entries of `hosts`.
const MAX_HOSTS: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireSidecar {
    workload_selector: Option<WireWorkloads>,
    #[serde(default)]
    egress: Vec<WireEgress>,
    outbound_traffic_policy: Option<WireOutbound>,
    // Refused.
    ingress: Option<IgnoredAny>,
    inbound_connection_pool: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireWorkloads {
    #[serde(default)]
    labels: Labels,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEgress {
    #[serde(default)]
    hosts: Vec<String>,
    // Accepted with its neutral value only.
    capture_mode: Option<String>,
    // Refused.
    port: Option<IgnoredAny>,
    bind: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireOutbound {
    mode: Option<String>,
    // Refused.
    egress_proxy: Option<IgnoredAny>,
}

impl WireSidecar {
    pub(super) fn parse(self, meta: Meta) -> Result<Sidecar, Fault> {
        let at = At::new("spec");
        at.unsupported(&[
            ("ingress", self.ingress.is_some()),
            ("inboundConnectionPool", self.inbound_connection_pool.is_some()),
        ])?;
        if let Some(policy) = self.outbound_traffic_policy {
            policy.check(&at.field("outboundTrafficPolicy"))?;
        }
        let workloads = match self.workload_selector {
            None => Labels::new(),
            Some(WireWorkloads { labels }) => {
                let at = at.field("workloadSelector").field("labels");
                if labels.is_empty() {
                    return Err(at.missing());
                }
                check::labels(&labels, &at)?;
                labels
            }
        };
        let at = at.field("egress");
        let mut entries = self.egress.into_iter();
        let Some(first) = entries.next() else { return Err(at.missing()) };
        let hosts = first.parse(&at.index(0))?;
        // As in Istio: one entry takes what no port is given for, and ports are not supported.
        if let Some(second) = entries.next() {
            second.parse(&at.index(1))?;
            return at.index(1).refuse("", "is a second entry without a port: list all hosts in the first");
        }
        Ok(Sidecar { meta, workloads, hosts })
    }
}

impl WireOutbound {
    fn check(self, at: &At) -> Result<(), Fault> {
        at.unsupported(&[("egressProxy", self.egress_proxy.is_some())])?;
        match self.mode.as_deref() {
            Some("ALLOW_ANY") => Ok(()),
            // What an absent mode means to Istio.
            mode => at.field("mode").refuse(
                mode.unwrap_or("REGISTRY_ONLY"),
                "is not supported; only ALLOW_ANY is: what leaves the mesh is for an egress NetworkPolicy to say",
            ),
        }
    }
}

impl WireEgress {
    fn parse(self, at: &At) -> Result<Vec<EgressHost>, Fault> {
        at.unsupported(&[("port", self.port.is_some()), ("bind", self.bind.is_some())])?;
        if let Some(mode) = self.capture_mode.filter(|mode| mode != "DEFAULT") {
            return at.field("captureMode").refuse(mode, "is not supported; only DEFAULT is");
        }
        let at = at.field("hosts");
        at.at_most(&self.hosts, MAX_HOSTS)?;
        if self.hosts.is_empty() {
            return Err(at.missing());
        }
        if self.hosts == ["~/*"] {
            return Ok(Vec::new());
        }
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for (i, text) in self.hosts.iter().enumerate() {
            let at = at.index(i);
            let host = host(text, &at)?;
            if hosts.contains(&host) {
                return at.refuse(text, "is listed twice");
            }
            hosts.push(host);
        }
        Ok(hosts)
    }
}

/// `<namespace>/<DNS name>`
fn host(text: &str, at: &At) -> Result<EgressHost, Fault> {
    const FORM: &str = "must be <namespace>/<DNS name>: the namespace a name, '.' or '*', the name in full, '*.<suffix>' or '*'";
    let Some((namespace, name)) = text.split_once('/') else { return at.refuse(text, FORM) };
    let namespace = match namespace {
        "." => EgressNamespace::Own,
        "*" => EgressNamespace::Any,
        "~" => return at.refuse(text, "means no service at all: write ~/*, and nothing beside it"),
        name if check::is_dns_label(name) => EgressNamespace::Named(name.to_owned()),
        _ => return at.refuse(text, FORM),
    };
    let pattern = match (name, name.strip_prefix('*')) {
        ("*", _) => HostPattern::Any,
        (_, Some(suffix)) if suffix.strip_prefix('.').is_some_and(check::is_dns_subdomain) => {
            HostPattern::Suffix(suffix.to_owned())
        }
        (name, None) if check::is_dns_subdomain(name) => HostPattern::Exact(name.to_owned()),
        _ => return at.refuse(text, FORM),
    };
    Ok(EgressHost { namespace, pattern })
}

pub(super) fn render(sidecar: &Sidecar) -> Value {
    let mut out = Map::new();
    if !sidecar.workloads.is_empty() {
        out.insert("workloadSelector".to_owned(), json!({"labels": sidecar.workloads}));
    }
    let hosts: Vec<String> = if sidecar.hosts.is_empty() {
        vec!["~/*".to_owned()]
    } else {
        sidecar.hosts.iter().map(ToString::to_string).collect()
    };
    out.insert("egress".to_owned(), json!([{"hosts": hosts}]));
    Value::Object(out)
}
