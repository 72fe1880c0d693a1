//! Ports of the node that lead to pods, as the runtime asks for them (`runtimeConfig.portMappings`). PURE.

use std::{fmt, net::IpAddr};

use ebpf_shared::packet::protocol;
use mesh_model::resource::NamespacedName;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xds_proto::isthmus::local::v1::CniPortMapping;

use super::{Endpoint, SharedRegistry};
use crate::desired::PodAddresses;

/// Of one pod.
const MOST: usize = 256;

/// Why a mapping is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum HostPortError {
    #[error("portMappings has {0} entries, at most {MOST} are allowed")]
    TooMany(usize),
    #[error("portMappings[{index}].{field} is {value}, expected 1 to 65535")]
    Port { index: usize, field: &'static str, value: u32 },
    #[error("portMappings[{index}].protocol is {value:?}, expected tcp, udp or sctp")]
    Protocol { index: usize, value: String },
    #[error("portMappings[{index}].hostIP is {value:?}, expected an address or nothing")]
    Address { index: usize, value: String },
    #[error("portMappings[{index}] is the same as another one")]
    Twice { index: usize },
}

/// A port of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// `None`: every address of the node.
    pub address: Option<IpAddr>,
    /// On the node.
    pub port: u16,
    /// In the pod.
    pub container_port: u16,
    /// IANA number.
    pub protocol: u8,
}

impl HostPort {
    /// Whether a packet could be meant for both.
    pub fn collides(&self, other: &Self) -> bool {
        let apart = matches!((self.address, other.address), (Some(one), Some(two)) if one != two);
        self.port == other.port && self.protocol == other.protocol && !apart
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            protocol::UDP => "udp",
            protocol::SCTP => "sctp",
            _ => "tcp",
        };
        match self.address {
            Some(address) => write!(f, "{}/{protocol}", std::net::SocketAddr::new(address, self.port)),
            None => write!(f, "{}/{protocol}", self.port),
        }
    }
}

/// Reads what the runtime asks for. Entries with host port 0 ask for nothing, as the `portmap` plugin has it.
///
/// # Errors
/// An entry that can't be meant.
pub fn host_ports(wire: &[CniPortMapping]) -> Result<Vec<HostPort>, HostPortError> {
    if wire.len() > MOST {
        return Err(HostPortError::TooMany(wire.len()));
    }
    let mut ports: Vec<HostPort> = Vec::new();
    for (index, mapping) in wire.iter().enumerate() {
        if mapping.host_port == 0 {
            continue;
        }
        let port = |field, value: u32| match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(HostPortError::Port { index, field, value }),
        };
        let shown = |text: &str| text.chars().take(80).collect::<String>();
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => protocol::TCP,
            "udp" => protocol::UDP,
            "sctp" => protocol::SCTP,
            other => return Err(HostPortError::Protocol { index, value: shown(other) }),
        };
        let address = match mapping.host_ip.as_str() {
            "" => None,
            text => match text.parse::<IpAddr>() {
                // Written as "every address".
                Ok(address) if address.is_unspecified() => None,
                Ok(address) => Some(address),
                Err(_) => return Err(HostPortError::Address { index, value: shown(text) }),
            },
        };
        let found = HostPort {
            address,
            port: port("hostPort", mapping.host_port)?,
            container_port: port("containerPort", mapping.container_port)?,
            protocol,
        };
        if ports.iter().any(|other| other.collides(&found)) {
            return Err(HostPortError::Twice { index });
        }
        ports.push(found);
    }
    Ok(ports)
}

/// A port of the node and the pod that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MappedPort {
    pub port: HostPort,
    pub workload: NamespacedName,
    pub addresses: PodAddresses,
}

impl SharedRegistry {
    /// All that the runtime wants to lead to pods that are ready.
    pub fn host_ports(&self) -> Vec<MappedPort> {
        let of = |pod: &Endpoint| -> Vec<MappedPort> {
            let of_pod = |port: &HostPort| MappedPort {
                port: *port,
                workload: pod.workload.clone(),
                addresses: pod.addresses(),
            };
            pod.host_ports.iter().map(of_pod).collect()
        };
        self.lock().iter().filter(|pod| pod.ready).flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Registry, registry_fixture};

    fn wire(host_port: u32, protocol: &str, host_ip: &str) -> CniPortMapping {
        CniPortMapping { host_port, container_port: 80, protocol: protocol.into(), host_ip: host_ip.into() }
    }

    #[test]
    fn mappings_are_read_and_what_asks_for_nothing_is_left_out() {
        let ports = host_ports(&[wire(8080, "TCP", ""), wire(0, "tcp", ""), wire(53, "udp", "192.0.2.1")]);
        let shown: Vec<_> = ports.unwrap().iter().map(HostPort::to_string).collect();
        assert_eq!(shown, ["8080/tcp", "192.0.2.1:53/udp"]);
    }

    #[test]
    fn what_can_not_be_meant_is_refused_by_its_field() {
        for (mapping, word) in [
            (wire(70_000, "tcp", ""), "hostPort"),
            (wire(80, "icmp", ""), "protocol"),
            (wire(80, "tcp", "localhost"), "hostIP"),
            (CniPortMapping { container_port: 0, ..wire(80, "tcp", "") }, "containerPort"),
        ] {
            let error = host_ports(&[mapping]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(
            host_ports(&[wire(80, "tcp", "192.0.2.1"), wire(80, "tcp", "0.0.0.0")]),
            Err(HostPortError::Twice { index: 1 })
        );
        assert_eq!(host_ports(&vec![wire(80, "tcp", ""); 257]), Err(HostPortError::TooMany(257)));
    }

    #[test]
    fn the_ports_of_pods_that_are_ready_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(dir.path(), "10.1.1.0/24".parse().unwrap()).unwrap();
        let host_ports = host_ports(&[wire(8080, "tcp", "")]).unwrap();
        let pod = Endpoint { host_ports, ..registry_fixture("c1", "shop/web") };
        let pod = registry.begin(pod).unwrap();
        let shared = SharedRegistry::new(registry);
        assert_eq!(shared.host_ports(), []);
        shared.lock().update(Endpoint { ready: true, ..pod.clone() }).unwrap();
        let told = shared.host_ports();
        assert_eq!((told.len(), told[0].port.port, told[0].addresses), (1, 8080, pod.addresses()));
    }
}
