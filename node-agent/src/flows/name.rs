//! Numbers and addresses of a flow to names. PURE.

use std::{collections::BTreeMap, net::IpAddr};

use ebpf_shared::{Direction, FlowEvent, Reason, ServiceKey, Verdict, packet::protocol};
use xds_proto::isthmus::bootstrap::v1::{Flow, FlowPeer};

use super::Record;
use crate::subscribe::Resources;

/// What is behind addresses and numbers, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub(super) node: String,
    workloads: BTreeMap<IpAddr, String>,
    accounts: BTreeMap<u32, String>,
    /// By address, port and protocol of a way in.
    services: BTreeMap<(IpAddr, u16, u8), String>,
    /// By what stands for that in events; `None`: for those of two services.
    told: BTreeMap<u32, Option<String>>,
    /// Host-side interfaces of pods.
    interfaces: BTreeMap<u32, String>,
}

impl Names {
    /// Of every workload, node and service of the cluster.
    pub fn of(node: &str, resources: &Resources) -> Self {
        let mut names = Self { node: node.to_owned(), ..Self::default() };
        for (name, node) in &resources.nodes {
            for address in node.all_addresses() {
                names.workloads.insert(address, format!("node/{name}"));
            }
        }
        for (name, workload) in &resources.addresses {
            for address in &workload.addresses {
                names.workloads.insert(*address, name.to_string());
            }
        }
        names.accounts.clone_from(&resources.accounts);
        names.add_services(resources);
        names
    }

    fn add_services(&mut self, resources: &Resources) {
        let own = resources.nodes.get(&self.node);
        let own: Vec<IpAddr> = own.into_iter().flat_map(|node| node.all_addresses()).collect();
        for (name, service) in &resources.services {
            let name = name.to_string();
            for port in &service.ports {
                for address in &service.addresses {
                    self.add_front(*address, port.port, port.protocol, &name);
                }
                let further = service.frontends.iter().filter(|front| front.service_port == port.port);
                for front in further.filter(|front| front.protocol == port.protocol) {
                    // None: at every address of the node.
                    for address in front.address.iter().chain(own.iter().filter(|_| front.address.is_none()))
                    {
                        self.add_front(*address, front.port, port.protocol, &name);
                    }
                }
            }
        }
    }

    fn add_front(&mut self, address: IpAddr, port: u16, protocol: u8, name: &str) {
        self.services.insert((address, port, protocol), name.to_owned());
        let told = self.told.entry(ServiceKey::told(&address.into(), port, protocol));
        told.and_modify(|one| {
            if one.as_deref() != Some(name) {
                *one = None;
            }
        })
        .or_insert_with(|| Some(name.to_owned()));
    }

    /// With the interfaces of these pods.
    #[must_use]
    pub fn with_interfaces(mut self, interfaces: BTreeMap<u32, String>) -> Self {
        self.interfaces = interfaces;
        self
    }

    pub(super) fn peer(&self, address: IpAddr, identity: u32) -> FlowPeer {
        FlowPeer {
            address: address.to_string(),
            identity,
            workload: self.workloads.get(&address).cloned().unwrap_or_default(),
            service_account: self.accounts.get(&identity).cloned().unwrap_or_default(),
        }
    }

    /// The service that the client of a flow asked for: as the kernel says, which translated it; or where nothing has, by
    /// its address. What is sent to a backend may have been meant for it alone.
    fn service(&self, event: &FlowEvent) -> String {
        if event.service != 0 {
            return self.told.get(&event.service).cloned().flatten().unwrap_or_default();
        }
        let (server, port) =
            if event.is_reply == 0 { (event.dst, event.dst_port) } else { (event.src, event.src_port) };
        self.services.get(&(server.into(), port, event.protocol)).cloned().unwrap_or_default()
    }

    /// Namespaces of the workloads at both ends of a flow.
    pub fn namespaces(&self, event: &FlowEvent) -> impl Iterator<Item = &str> {
        let ends = [IpAddr::from(event.src), IpAddr::from(event.dst)];
        ends.into_iter().filter_map(|address| {
            let (namespace, _) = self.workloads.get(&address)?.split_once('/')?;
            (namespace != "node").then_some(namespace)
        })
    }

    /// A flow as the control plane takes it. `policy` names the rule that decided.
    pub fn name(&self, record: &Record, policy: &str) -> Flow {
        let event = &record.event;
        let verdict = Verdict::from_number(event.verdict);
        let reason = Reason::from_number(event.reason).map_or("UNKNOWN", Reason::name);
        let is_icmp = event.protocol == protocol::ICMP || event.protocol == protocol::ICMPV6;
        Flow {
            time_unix_nanos: record.unix_nanos,
            node: self.node.clone(),
            verdict: verdict.map_or("UNKNOWN", Verdict::name).to_owned(),
            drop_reason: if verdict == Some(Verdict::Dropped) { reason.to_owned() } else { String::new() },
            policy: policy.to_owned(),
            direction: if event.direction == Direction::Egress as u8 { "EGRESS" } else { "INGRESS" }
                .to_owned(),
            source: Some(self.peer(event.src.into(), event.src_identity)),
            destination: Some(self.peer(event.dst.into(), event.dst_identity)),
            protocol: protocol_name(event.protocol),
            source_port: event.src_port.into(),
            destination_port: event.dst_port.into(),
            is_reply: event.is_reply != 0,
            tcp_flags: event.tcp_flags.into(),
            icmp_type: if is_icmp { u32::from(event.icmp >> 8) } else { 0 },
            icmp_code: if is_icmp { u32::from(event.icmp & 0xff) } else { 0 },
            interface: self.interfaces.get(&event.ifindex).cloned().unwrap_or_default(),
            interface_index: event.ifindex,
            service: self.service(event),
            from_tunnel: event.flags & FlowEvent::FROM_TUNNEL != 0,
            is_error: event.flags & FlowEvent::ERROR != 0,
            bytes: event.bytes,
            count: record.count,
            dns: None,
        }
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::ICMP => "ICMP".to_owned(),
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::ICMPV6 => "ICMPV6".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::{Address, Service, ServiceBackend, ServicePort};
    use mesh_model::resource::NamespacedName;
    use std::net::Ipv4Addr;

    fn event() -> FlowEvent {
        FlowEvent {
            ifindex: 9,
            src: Ipv4Addr::new(10, 1, 1, 2).into(),
            dst: Ipv4Addr::new(192, 0, 2, 7).into(),
            src_identity: 300,
            dst_identity: 2,
            src_port: 40_000,
            dst_port: 443,
            protocol: 6,
            tcp_flags: 2,
            direction: Direction::Egress as u8,
            verdict: Verdict::Dropped as u8,
            reason: Reason::DefaultDeny as u8,
            ..FlowEvent::default()
        }
    }

    fn resources() -> Resources {
        let mut resources = Resources::default();
        let web =
            Address { addresses: vec![[10, 1, 1, 2].into(), "fd00::2".parse().unwrap()], identity: 300 };
        resources.addresses.insert(NamespacedName::new("shop", "web"), web);
        resources.accounts.insert(300, "frontend".to_owned());
        resources
    }

    #[test]
    fn a_drop_says_who_wanted_what_of_whom_and_which_policy_forbade_it() {
        let interfaces = BTreeMap::from([(9, "ist9".to_owned())]);
        let names = Names::of("n1", &resources()).with_interfaces(interfaces);
        let policy = "networkpolicy/shop/quiet#default-deny-egress";
        let flow = names.name(&Record::one(7, event()), policy);
        assert_eq!((flow.verdict.as_str(), flow.drop_reason.as_str()), ("DROPPED", "DEFAULT_DENY"));
        assert_eq!((flow.direction.as_str(), flow.protocol.as_str()), ("EGRESS", "TCP"));
        assert_eq!((flow.interface.as_str(), flow.node.as_str(), flow.time_unix_nanos), ("ist9", "n1", 7));
        let source = flow.source.unwrap();
        assert_eq!((source.workload.as_str(), source.service_account.as_str()), ("shop/web", "frontend"));
        let destination = flow.destination.unwrap();
        assert_eq!((destination.address.as_str(), destination.workload.as_str()), ("192.0.2.7", ""));
        assert_eq!(flow.policy, policy);
        let by_ipv6 = FlowEvent { src: "fd00::2".parse::<IpAddr>().unwrap().into(), ..event() };
        let source = names.name(&Record::one(7, by_ipv6), policy).source.unwrap();
        assert_eq!((source.address.as_str(), source.workload.as_str()), ("fd00::2", "shop/web"));
        assert_eq!(names.namespaces(&event()).collect::<Vec<_>>(), ["shop"]);
    }

    #[test]
    fn an_audited_flow_was_forwarded_and_has_no_reason_of_a_drop() {
        let audited = FlowEvent { verdict: Verdict::Audit as u8, reason: 0, ..event() };
        let flow = Names::default().name(&Record { count: 3, ..Record::one(7, audited) }, "p");
        assert_eq!((flow.verdict.as_str(), flow.drop_reason.as_str(), flow.count), ("AUDIT", "", 3));
    }

    #[test]
    fn a_service_is_known_by_what_was_asked_and_not_by_who_answers() {
        let backend = |last| ServiceBackend {
            address: [10, 1, 1, last].into(),
            port: 8080,
            weight: 1,
            ..ServiceBackend::default()
        };
        let service = |front, backends: Vec<ServiceBackend>| Service {
            addresses: vec![[10, 96, 0, front].into()],
            ports: vec![ServicePort {
                port: 80,
                protocol: 6,
                proxy_port: 0,
                backends,
                ..ServicePort::default()
            }],
            ..Service::default()
        };
        let mut resources = resources();
        resources
            .services
            .insert(NamespacedName::new("shop", "pay"), service(1, vec![backend(7), backend(8)]).into());
        resources.services.insert(NamespacedName::new("shop", "all"), service(2, vec![backend(8)]).into());
        let names = Names::of("n1", &resources);
        let asked = |last: [u8; 4], port, service| {
            let event = FlowEvent { dst: Ipv4Addr::from(last).into(), dst_port: port, service, ..event() };
            names.name(&Record::one(7, event), "").service
        };
        let told = |last: u8| ServiceKey::told(&Ipv4Addr::new(10, 96, 0, last).into(), 80, 6);
        assert_eq!(asked([10, 96, 0, 1], 80, 0), "shop/pay");
        assert_eq!(asked([10, 1, 1, 7], 8080, told(1)), "shop/pay");
        assert_eq!(asked([10, 1, 1, 8], 8080, told(1)), "shop/pay", "a backend of two");
        assert_eq!(asked([10, 1, 1, 8], 8080, told(2)), "shop/all");
        assert_eq!(asked([10, 1, 1, 7], 8080, 0), "", "the pod itself was asked");
        assert_eq!(asked([10, 1, 1, 7], 8080, 5), "", "a service that is gone");
    }
}
