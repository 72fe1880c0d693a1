//! Numbers and addresses of an event to names. PURE.

use std::{collections::BTreeMap, net::IpAddr};

use ebpf_shared::{Direction, FlowEvent, Reason};
use xds_proto::isthmus::bootstrap::v1::{Flow, FlowPeer};

use super::WallClock;
use crate::subscribe::Resources;

/// What is behind addresses.
#[derive(Debug, Clone, Default)]
pub struct Names {
    workloads: BTreeMap<IpAddr, String>,
}

impl Names {
    /// Of every workload and node of the cluster.
    pub fn of(resources: &Resources) -> Self {
        let mut workloads = BTreeMap::new();
        for (name, node) in &resources.nodes {
            for address in [Some(node.address.into()), node.address6.map(IpAddr::V6)].into_iter().flatten() {
                workloads.insert(address, format!("node/{name}"));
            }
        }
        for (name, workload) in &resources.addresses {
            for address in &workload.addresses {
                workloads.insert(*address, name.to_string());
            }
        }
        Self { workloads }
    }

    fn peer(&self, address: IpAddr, identity: u32) -> FlowPeer {
        FlowPeer {
            address: address.to_string(),
            identity,
            workload: self.workloads.get(&address).cloned().unwrap_or_default(),
        }
    }
}

/// An event as the control plane takes it. `policy` names the rule that decided.
pub fn name(event: &FlowEvent, names: &Names, node: &str, policy: &str, clock: WallClock) -> Flow {
    let known = Reason::from_number(event.reason);
    let forwarded = known == Some(Reason::Forwarded);
    let reason = known.map_or("UNKNOWN", Reason::name);
    let verdict = match known {
        Some(Reason::Forwarded) => "FORWARDED",
        Some(Reason::Audited) => "AUDIT",
        _ => "DROPPED",
    };
    Flow {
        time_unix_nanos: clock.unix_nanos(event.time),
        node: node.to_owned(),
        verdict: verdict.to_owned(),
        drop_reason: if forwarded { String::new() } else { reason.to_owned() },
        policy: policy.to_owned(),
        direction: if event.direction == Direction::Egress as u8 { "EGRESS" } else { "INGRESS" }.to_owned(),
        source: Some(names.peer(event.src.into(), event.src_identity)),
        destination: Some(names.peer(event.dst.into(), event.dst_identity)),
        protocol: protocol(event.protocol),
        source_port: event.src_port.into(),
        destination_port: event.dst_port.into(),
        is_reply: event.is_reply != 0,
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPV6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::Address;
    use mesh_model::resource::NamespacedName;
    use std::net::Ipv4Addr;

    #[test]
    fn a_drop_says_who_wanted_what_of_whom_and_which_policy_forbade_it() {
        let mut resources = Resources::default();
        let web =
            Address { addresses: vec![[10, 1, 1, 2].into(), "fd00::2".parse().unwrap()], identity: 300 };
        resources.addresses.insert(NamespacedName::new("shop", "web"), web);
        let event = FlowEvent {
            src: Ipv4Addr::new(10, 1, 1, 2).into(),
            dst: Ipv4Addr::new(192, 0, 2, 7).into(),
            src_identity: 300,
            dst_identity: 2,
            src_port: 40_000,
            dst_port: 443,
            protocol: 6,
            direction: Direction::Egress as u8,
            reason: Reason::DefaultDeny as u8,
            ..FlowEvent::default()
        };
        let policy = "networkpolicy/shop/quiet#default-deny-egress";
        let flow = name(&event, &Names::of(&resources), "n1", policy, WallClock::now());
        assert_eq!((flow.verdict.as_str(), flow.drop_reason.as_str()), ("DROPPED", "DEFAULT_DENY"));
        assert_eq!((flow.direction.as_str(), flow.protocol.as_str()), ("EGRESS", "TCP"));
        assert_eq!(flow.source.unwrap().workload, "shop/web");
        let destination = flow.destination.unwrap();
        assert_eq!((destination.address.as_str(), destination.workload.as_str()), ("192.0.2.7", ""));
        assert_eq!(flow.policy, policy);
        let by_ipv6 = FlowEvent { src: "fd00::2".parse::<IpAddr>().unwrap().into(), ..event };
        let source = name(&by_ipv6, &Names::of(&resources), "n1", policy, WallClock::now()).source.unwrap();
        assert_eq!((source.address.as_str(), source.workload.as_str()), ("fd00::2", "shop/web"));
    }
}
