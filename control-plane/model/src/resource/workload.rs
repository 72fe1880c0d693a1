//! `isthmus.io/v1 Workload`.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    HostPort, Meta, ProxyMode, Workload, WorkloadPort, check,
    error::{At, Fault},
    port,
    readiness::{self, WireReadiness},
};

const MAX_PORTS: usize = 64;
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireWorkload {
    service_account: Option<String>,
    proxy: Option<String>,
    #[serde(default)]
    ports: Vec<WireWorkloadPort>,
    address: Option<String>,
    readiness_probe: Option<WireReadiness>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireWorkloadPort {
    name: Option<String>,
    port: i64,
    protocol: Option<String>,
    app_protocol: Option<String>,
    host_port: Option<i64>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

impl WireWorkload {
    pub(super) fn parse(self, meta: Meta) -> Result<Workload, Fault> {
        let at = At::new("spec");
        let service_account = self.service_account.unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.to_owned());
        check::dns_subdomain(&service_account, &at.field("serviceAccount"))?;
        let proxy = match self.proxy.as_deref() {
            None => ProxyMode::None,
            Some(text) => ProxyMode::from_name(text)
                .ok_or_else(|| at.field("proxy").fault(text, "must be none, sidecar or gateway"))?,
        };
        let address = match self.address {
            Some(text) => Some(check::unicast_ip(&text, &at.field("address"))?),
            None if proxy == ProxyMode::Gateway => {
                return at
                    .field("address")
                    .refuse("", "is required for a gateway: peers must be able to reach it");
            }
            None => None,
        };
        let at_probe = at.field("readinessProbe");
        let at = at.field("ports");
        at.at_most(&self.ports, MAX_PORTS)?;
        let mut ports: Vec<WorkloadPort> = Vec::new();
        let (mut names, mut numbers, mut host) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (i, wire) in self.ports.into_iter().enumerate() {
            let at = at.index(i);
            let port = wire.parse(&at)?;
            if !numbers.insert((port.port, port.protocol)) {
                return at.field("port").refuse(port.port, "is listed twice with the same protocol");
            }
            if let Some(HostPort { port: number, ip }) = port.host_port
                && !host.insert((port.protocol, number, ip))
            {
                return at.field("hostPort").refuse(number, "is listed twice with the same protocol");
            }
            if let Some(name) = &port.name
                && !names.insert(name.clone())
            {
                return at.field("name").refuse(name, "names two ports");
            }
            ports.push(port);
        }
        let probe = self.readiness_probe;
        let readiness = probe.map(|wire| wire.parse(&ports, &at_probe)).transpose()?;
        Ok(Workload { meta, service_account, proxy, ports, address, readiness })
    }
}

impl WireWorkloadPort {
    fn parse(self, at: &At) -> Result<WorkloadPort, Fault> {
        if let Some(name) = &self.name {
            check::port_name(name, &at.field("name"))?;
        }
        let at_ip = at.field("hostIP");
        // Kubernetes' own printers write 0 and "" where nothing is meant.
        let number = self.host_port.filter(|number| *number != 0);
        let host_port = match (number, self.host_ip.filter(|ip| !ip.is_empty())) {
            (None, None) => None,
            (None, Some(ip)) => return at_ip.refuse(ip, "needs a hostPort"),
            (Some(number), ip) => {
                let ip = ip.map(|text| check::unicast_ip(&text, &at_ip)).transpose()?;
                Some(HostPort { port: check::port(number, &at.field("hostPort"))?, ip })
            }
        };
        Ok(WorkloadPort {
            host_port,
            port: check::port(self.port, &at.field("port"))?,
            protocol: port::protocol(self.protocol.as_deref(), &at.field("protocol"))?,
            app_protocol: self
                .app_protocol
                .map(|text| port::app_protocol(&text, &at.field("appProtocol")))
                .transpose()?,
            name: self.name,
        })
    }
}

impl ProxyMode {
    /// As objects spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyMode::None => "none",
            ProxyMode::Sidecar => "sidecar",
            ProxyMode::Gateway => "gateway",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn from_name(text: &str) -> Option<Self> {
        [ProxyMode::None, ProxyMode::Sidecar, ProxyMode::Gateway].into_iter().find(|m| m.as_str() == text)
    }
}

pub(super) fn render(workload: &Workload) -> Value {
    let mut out = Map::new();
    out.insert("serviceAccount".to_owned(), json!(workload.service_account));
    out.insert("proxy".to_owned(), json!(workload.proxy.as_str()));
    if !workload.ports.is_empty() {
        out.insert("ports".to_owned(), workload.ports.iter().map(render_port).collect());
    }
    if let Some(address) = workload.address {
        out.insert("address".to_owned(), json!(address));
    }
    if let Some(probe) = &workload.readiness {
        out.insert("readinessProbe".to_owned(), readiness::render(probe));
    }
    Value::Object(out)
}

fn render_port(port: &WorkloadPort) -> Value {
    let mut out = Map::new();
    if let Some(name) = &port.name {
        out.insert("name".to_owned(), json!(name));
    }
    out.insert("port".to_owned(), json!(port.port));
    out.insert("protocol".to_owned(), json!(port.protocol.as_str()));
    if let Some(app) = port.app_protocol {
        out.insert("appProtocol".to_owned(), json!(app.as_str()));
    }
    if let Some(HostPort { port, ip }) = port.host_port {
        out.insert("hostPort".to_owned(), json!(port));
        if let Some(ip) = ip {
            out.insert("hostIP".to_owned(), json!(ip));
        }
    }
    Value::Object(out)
}
