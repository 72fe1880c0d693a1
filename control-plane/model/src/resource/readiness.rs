//! `readinessProbe` of a Workload: how its node finds out whether it takes traffic.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    PortRef, Protocol, WorkloadPort,
    error::{At, Fault},
    port::{self, WirePort},
};

const MAX_PATH: usize = 1024;
/// Seconds, and Kubernetes' default.
const MAX_PERIOD: i64 = 3_600;
const DEFAULT_PERIOD: u32 = 10;
/// In a row, and Kubernetes' default.
const MAX_FAILURES: i64 = 100;
const DEFAULT_FAILURES: u32 = 3;

/// A probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The path that is asked for by HTTP. None: a TCP connection is enough.
    pub http_path: Option<String>,
    /// By number, or by the name that the workload gives it.
    pub port: PortRef,
    #[allow(missing_docs)]
    pub period_seconds: u32,
    /// In a row, after which it is not ready.
    pub failures: u32,
}

impl Readiness {
    /// The number of its port.
    pub fn port_number(&self, ports: &[WorkloadPort]) -> Option<u16> {
        match &self.port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => {
                let of_name =
                    |p: &&WorkloadPort| p.protocol == Protocol::Tcp && p.name.as_ref() == Some(name);
                ports.iter().find(of_name).map(|p| p.port)
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireReadiness {
    http_get: Option<WireHttp>,
    tcp_socket: Option<WireTcp>,
    period_seconds: Option<i64>,
    failure_threshold: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHttp {
    path: Option<String>,
    port: WirePort,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTcp {
    port: WirePort,
}

impl WireReadiness {
    pub(super) fn parse(self, ports: &[WorkloadPort], at: &At) -> Result<Readiness, Fault> {
        let (http_path, port, at_port) = match (self.http_get, self.tcp_socket) {
            (Some(http), None) => {
                let at = at.field("httpGet");
                let path = http.path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
                let good = path.starts_with('/')
                    && path.len() <= MAX_PATH
                    && path.bytes().all(|b| b.is_ascii_graphic());
                if !good {
                    let wanted =
                        format!("must begin with / and have at most {MAX_PATH} visible ASCII characters");
                    return at.field("path").refuse(&path, wanted);
                }
                (Some(path), http.port, at.field("port"))
            }
            (None, Some(tcp)) => (None, tcp.port, at.field("tcpSocket").field("port")),
            (Some(_), Some(_)) => return at.refuse("", "must have httpGet or tcpSocket, not both"),
            (None, None) => return at.refuse("", "must have httpGet or tcpSocket"),
        };
        let within = |field: &str, said: Option<i64>, most: i64, default: u32| match said {
            None => Ok(default),
            Some(number) => u32::try_from(number)
                .ok()
                .filter(|_| (1..=most).contains(&number))
                .ok_or_else(|| at.field(field).fault(number, format!("must be 1 to {most}"))),
        };
        let probe = Readiness {
            http_path,
            port: port.parse(&at_port)?,
            period_seconds: within("periodSeconds", self.period_seconds, MAX_PERIOD, DEFAULT_PERIOD)?,
            failures: within("failureThreshold", self.failure_threshold, MAX_FAILURES, DEFAULT_FAILURES)?,
        };
        if probe.port_number(ports).is_none() {
            return at_port.refuse("", "must be a number, or the name of one of its TCP ports");
        }
        Ok(probe)
    }
}

pub(super) fn render(probe: &Readiness) -> Value {
    let port = port::render(&probe.port);
    let mut out = match &probe.http_path {
        Some(path) => json!({ "httpGet": { "path": path, "port": port } }),
        None => json!({ "tcpSocket": { "port": port } }),
    };
    out["periodSeconds"] = json!(probe.period_seconds);
    out["failureThreshold"] = json!(probe.failures);
    out
}
