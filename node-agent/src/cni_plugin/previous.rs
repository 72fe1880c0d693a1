//! What the plugin before this one in a chain has answered (`prevResult`), as far as it matters here. PURE.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;

use crate::desired::PodAddresses;

/// More than this of either in one result is refused.
const MOST: usize = 64;

/// Why a chain can't end in this plugin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum PreviousError {
    #[error("prevResult is no result of the CNI specification: {0}")]
    Json(String),
    #[error("prevResult.{field} has {found} entries, at most {MOST} are read")]
    TooMany { field: &'static str, found: usize },
    #[error("prevResult.ips[{index}].address is {text:?}, expected an address with its prefix length")]
    Address { index: usize, text: String },
    #[error("prevResult.ips[{index}].gateway is {text:?}, expected an address")]
    Gateway { index: usize, text: String },
    #[error("prevResult.ips[{index}].interface is {interface}, and there are {count} interfaces")]
    Interface { index: usize, interface: u64, count: usize },
    #[error("prevResult gives the interface {ifname} no IPv4 address; a pod here has one")]
    NoAddress { ifname: String },
    #[error("prevResult gives the interface {ifname} {count} addresses of {family}; a pod here has one")]
    Several { ifname: String, family: &'static str, count: usize },
    #[error("prevResult gives the interface {ifname} the address {address}, which no pod can have")]
    Unusable { ifname: String, address: IpAddr },
}

#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(default)]
    interfaces: Vec<WireInterface>,
    #[serde(default)]
    ips: Vec<WireIp>,
}

#[derive(Debug, Deserialize)]
struct WireInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct WireIp {
    #[serde(default)]
    address: String,
    #[serde(default)]
    interface: Option<u64>,
    #[serde(default)]
    gateway: String,
}

/// The addresses of a pod that another plugin has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousResult {
    /// Of the container's interface.
    pub addresses: PodAddresses,
    /// The gateways of these addresses.
    pub gateways: Vec<IpAddr>,
}

impl PreviousResult {
    /// Reads the JSON of a result of version 0.4.0 or later, and takes what is about the interface `ifname` within the
    /// container. Addresses that name no interface are the container's.
    ///
    /// # Errors
    /// It is none, or gives the interface not exactly one IPv4 address and at most one of IPv6.
    pub fn parse(json: &[u8], ifname: &str) -> Result<Self, PreviousError> {
        let wire: Wire =
            serde_json::from_slice(json).map_err(|error| PreviousError::Json(error.to_string()))?;
        for (field, found) in [("interfaces", wire.interfaces.len()), ("ips", wire.ips.len())] {
            if found > MOST {
                return Err(PreviousError::TooMany { field, found });
            }
        }
        let (mut four, mut six): (Vec<Ipv4Addr>, Vec<Ipv6Addr>) = (Vec::new(), Vec::new());
        let mut gateways = Vec::new();
        for (index, ip) in wire.ips.iter().enumerate() {
            if let Some(interface) = ip.interface {
                let at = usize::try_from(interface).ok().and_then(|at| wire.interfaces.get(at));
                let count = wire.interfaces.len();
                let at = at.ok_or(PreviousError::Interface { index, interface, count })?;
                if at.name != ifname || at.sandbox.is_empty() {
                    continue;
                }
            }
            let net: IpNet = ip
                .address
                .parse()
                .map_err(|_| PreviousError::Address { index, text: ip.address.chars().take(80).collect() })?;
            let address = net.addr();
            let unusable = match address {
                IpAddr::V4(four) => four.is_broadcast() || four.is_link_local(),
                // What packets would carry as IPv4.
                IpAddr::V6(six) => six.to_ipv4_mapped().is_some() || six.is_unicast_link_local(),
            };
            if unusable || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return Err(PreviousError::Unusable { ifname: ifname.to_owned(), address });
            }
            if !ip.gateway.is_empty() {
                let text = || ip.gateway.chars().take(80).collect();
                let gateway =
                    ip.gateway.parse().map_err(|_| PreviousError::Gateway { index, text: text() })?;
                gateways.push(gateway);
            }
            match address {
                IpAddr::V4(address) => four.push(address),
                IpAddr::V6(address) => six.push(address),
            }
        }
        let several = |family, count| PreviousError::Several { ifname: ifname.to_owned(), family, count };
        let v4 = match four[..] {
            [address] => address,
            [] => return Err(PreviousError::NoAddress { ifname: ifname.to_owned() }),
            _ => return Err(several("IPv4", four.len())),
        };
        if six.len() > 1 {
            return Err(several("IPv6", six.len()));
        }
        Ok(Self { addresses: PodAddresses { v4, v6: six.first().copied() }, gateways })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &serde_json::Value) -> Result<PodAddresses, PreviousError> {
        PreviousResult::parse(value.to_string().as_bytes(), "eth0").map(|previous| previous.addresses)
    }

    #[test]
    fn the_results_of_bridge_and_ptp_give_the_containers_addresses() {
        let bridge = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0", "mac": "0a:00:00:00:00:01" },
                { "name": "veth12ab", "mac": "0a:00:00:00:00:02" },
                { "name": "eth0", "mac": "0a:00:00:00:00:03", "sandbox": "/run/netns/a" }
            ],
            "ips": [
                { "interface": 2, "address": "10.1.1.7/24", "gateway": "10.1.1.1" },
                { "interface": 2, "address": "fd00:1::107/120", "gateway": "fd00:1::101" }
            ],
            "routes": [{ "dst": "0.0.0.0/0" }], "dns": {}
        });
        let six = Some("fd00:1::107".parse().unwrap());
        assert_eq!(parse(&bridge).unwrap(), PodAddresses { v4: [10, 1, 1, 7].into(), v6: six });
        let ptp = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{ "name": "vetha" }, { "name": "eth0", "sandbox": "/run/netns/a" }],
            "ips": [{ "version": "4", "interface": 1, "address": "10.1.1.8/24", "gateway": "10.1.1.1" }]
        });
        assert_eq!(parse(&ptp).unwrap(), Ipv4Addr::new(10, 1, 1, 8).into());
        let unnamed = json!({ "ips": [{ "address": "10.1.1.9/32" }] });
        assert_eq!(parse(&unnamed).unwrap(), Ipv4Addr::new(10, 1, 1, 9).into());
    }

    #[test]
    fn what_is_not_one_pods_addresses_is_refused_by_name() {
        for (value, word) in [
            (json!("x"), "no result"),
            (json!({}), "no IPv4 address"),
            (json!({ "ips": [{ "address": "10.1.1.2" }] }), "prefix length"),
            (json!({ "ips": [{ "address": "10.1.1.2/32", "interface": 3 }] }), "there are 0 interfaces"),
            (json!({ "ips": [{ "address": "10.1.1.2/32" }, { "address": "10.1.1.3/32" }] }), "2 addresses"),
            (json!({ "ips": [{ "address": "127.0.0.1/8" }] }), "127.0.0.1"),
            (json!({ "ips": [{ "address": "::ffff:10.0.0.1/128" }] }), "no pod can have"),
            (json!({ "ips": vec![json!({ "address": "10.1.1.2/32" }); 65] }), "at most 64"),
            // The host's end is not the container's.
            (
                json!({ "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.1.1.2/32", "interface": 0 }] }),
                "no IPv4 address",
            ),
        ] {
            let error = parse(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
