//! Pods: their links, addresses and namespaces, and the agent's half of the CNI plugin.

mod chained;
mod check;
mod create;
mod endpoint;
mod gc;
mod host_port;
mod ipam;
mod link;
mod netns;
mod readiness;
mod refuse;
mod registry;
mod report;
mod service;
mod sysctl;
mod watch;

pub(crate) use create::{Creator, pod_of, ports_of};
pub use endpoint::{Endpoint, EndpointKey, host_interface};
pub use host_port::{HostPort, HostPortError, MappedPort, host_ports};
pub use ipam::{IpamError, allocate, beside};
pub(crate) use link::is_missing;
pub use link::{HostNet, LinkError, PodLink};
pub use netns::{Netns, NetnsError, NetnsId, netns_of_process};
pub(crate) use netns::{cookie_of, own_cookie};
pub use readiness::probe_for_ever;
pub use registry::{Registry, RegistryError, SharedRegistry};
pub(crate) use report::report;
pub use service::CniService;
pub(crate) use sysctl::prepare_tunnel;
pub use sysctl::{SysctlError, prepare_host, prepare_host6};
pub use watch::watch_for_ever;

/// Where pods send everything: a link-local address that is the same in every pod, and that nobody has. Its
/// neighbour entry is permanent and names the host's end of the link.
pub const GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6: the permanent neighbour entry is all that there is of it.
pub const GATEWAY6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Where no uplink tells another: the whole frame of the usual Ethernet.
pub const MTU: u32 = 1500;

#[cfg(test)]
pub(crate) use registry::tests::endpoint as registry_fixture;
