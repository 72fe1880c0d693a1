//! A flow as agents report it, as one of Hubble's. PURE. docs/hubble.md says of each field where it comes from.

use std::net::IpAddr;

use mesh_model::resource::NamespacedName;
use xds_proto::{
    hubble::flow::{
        self as hubble, CiliumEventType, Dns, Endpoint, Flow, FlowType, IcmPv4, IcmPv6, Ip, IpVersion,
        L7FlowType, Layer4, Layer7, NetworkInterface, Sctp, Service, Tcp, TcpFlags, TraceObservationPoint,
        TrafficDirection, Udp, Verdict, Workload, layer4::Protocol, layer7::Record,
    },
    isthmus::bootstrap::v1::{Flow as Told, FlowDns, FlowPeer},
};

use crate::{policy, reason::drop_reason};

/// Message types of Cilium's events (`pkg/monitor/api`).
mod event {
    pub(super) const DROP: i32 = 1;
    pub(super) const TRACE: i32 = 4;
    pub(super) const POLICY_VERDICT: i32 = 5;
    pub(super) const L7: i32 = 129;
    /// Sub-types of a trace.
    pub(super) const TO_ENDPOINT: i32 = 0;
    pub(super) const FROM_ENDPOINT: i32 = 5;
}

/// The kind of workload that is told where Hubble has the name of a controller.
const KIND: &str = "Workload";

/// Labels of a workload.
pub type Labels = Vec<(String, String)>;

/// What a flow does not say of itself.
pub trait Naming {
    /// The cluster that it was seen in.
    fn cluster(&self) -> &str;
    /// The labels that the policies of a workload may look at.
    fn labels(&self, workload: &NamespacedName, identity: u32) -> Labels;
}

/// Identity numbers as Cilium has them: some reserved ones differ from ours (`ebpf_shared::identity`).
pub fn identity(ours: u32) -> u32 {
    match ours {
        // remote-node, unmanaged
        3 => 6,
        5 => 3,
        other => other,
    }
}

/// Names of the reserved identities, in Cilium's count.
fn reserved(identity: u32) -> Option<&'static str> {
    match identity {
        1 => Some("reserved:host"),
        2 => Some("reserved:world"),
        3 => Some("reserved:unmanaged"),
        4 => Some("reserved:health"),
        6 => Some("reserved:remote-node"),
        _ => None,
    }
}

/// Translates a flow.
pub fn translate(told: &Told, naming: &impl Naming) -> Flow {
    let verdict = verdict(&told.verdict);
    let is_egress = told.direction == "EGRESS";
    // Hubble's direction is that of the connection.
    let direction =
        if is_egress == told.is_reply { TrafficDirection::Ingress } else { TrafficDirection::Egress };
    let reason = drop_reason(&told.drop_reason);
    let point =
        if is_egress { TraceObservationPoint::FromEndpoint } else { TraceObservationPoint::ToEndpoint };
    let event_type = match verdict {
        Verdict::Dropped => CiliumEventType { r#type: event::DROP, sub_type: reason as i32 },
        Verdict::Audit => CiliumEventType { r#type: event::POLICY_VERDICT, sub_type: 0 },
        _ => CiliumEventType {
            r#type: event::TRACE,
            sub_type: if is_egress { event::FROM_ENDPOINT } else { event::TO_ENDPOINT },
        },
    };
    let is_trace = event_type.r#type == event::TRACE;
    let mut flow = Flow {
        time: Some(timestamp(told.time_unix_nanos)),
        verdict: verdict.into(),
        drop_reason: if verdict == Verdict::Dropped { reason as u32 } else { 0 },
        drop_reason_desc: if verdict == Verdict::Dropped { reason.into() } else { 0 },
        ip: ip(told),
        l4: layer4(told).map(|protocol| Layer4 { protocol: Some(protocol) }),
        source: told.source.as_ref().map(|peer| endpoint(peer, naming)),
        destination: told.destination.as_ref().map(|peer| endpoint(peer, naming)),
        r#type: FlowType::L3L4.into(),
        node_name: format!("{}/{}", naming.cluster(), told.node),
        event_type: Some(event_type),
        traffic_direction: direction.into(),
        trace_observation_point: if is_trace { point.into() } else { 0 },
        reply: told.is_reply,
        is_reply: Some(told.is_reply),
        interface: (told.interface_index != 0)
            .then(|| NetworkInterface { index: told.interface_index, name: told.interface.clone() }),
        uuid: uuid(told),
        summary: summary(told),
        ..Flow::default()
    };
    if let Some(dns) = &told.dns {
        flow.r#type = FlowType::L7.into();
        flow.event_type = Some(CiliumEventType { r#type: event::L7, sub_type: 0 });
        flow.l7 = Some(layer7(dns, told.is_reply));
        flow.trace_observation_point = 0;
    }
    let service = service(&told.service);
    if told.is_reply {
        flow.source_service = service;
    } else {
        flow.destination_service = service;
    }
    if let Some(decided) = policy::policy(&told.policy) {
        let passed = matches!(verdict, Verdict::Forwarded | Verdict::Redirected);
        let list = match (direction, passed) {
            (TrafficDirection::Egress, true) => &mut flow.egress_allowed_by,
            (TrafficDirection::Egress, false) => &mut flow.egress_denied_by,
            (_, true) => &mut flow.ingress_allowed_by,
            (_, false) => &mut flow.ingress_denied_by,
        };
        list.push(decided);
    }
    flow
}

fn layer7(dns: &FlowDns, is_answer: bool) -> Layer7 {
    let kind = if is_answer { L7FlowType::Response } else { L7FlowType::Request };
    let record = Dns {
        // As Cilium has it: with the last dot.
        query: format!("{}.", dns.query),
        ips: dns.addresses.clone(),
        rcode: dns.rcode,
        observation_source: "proxy".to_owned(),
        ..Dns::default()
    };
    Layer7 { r#type: kind.into(), record: Some(Record::Dns(record)), ..Layer7::default() }
}

pub(crate) fn timestamp(unix_nanos: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(unix_nanos / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_nanos % 1_000_000_000).unwrap_or(0),
    }
}

fn verdict(name: &str) -> Verdict {
    match name {
        "FORWARDED" => Verdict::Forwarded,
        "DROPPED" => Verdict::Dropped,
        "AUDIT" => Verdict::Audit,
        "REDIRECTED" => Verdict::Redirected,
        _ => Verdict::Unknown,
    }
}

fn ip(told: &Told) -> Option<Ip> {
    let source: IpAddr = told.source.as_ref()?.address.parse().ok()?;
    let destination: IpAddr = told.destination.as_ref()?.address.parse().ok()?;
    // A frame that was not IP has neither.
    if source.is_unspecified() && destination.is_unspecified() {
        return None;
    }
    let version = if source.is_ipv4() { IpVersion::IPv4 } else { IpVersion::IPv6 };
    Some(Ip {
        source: source.to_string(),
        destination: destination.to_string(),
        ip_version: version.into(),
        encrypted: false,
    })
}

fn layer4(told: &Told) -> Option<Protocol> {
    let (source_port, destination_port) = (told.source_port, told.destination_port);
    match told.protocol.as_str() {
        "TCP" => Some(Protocol::Tcp(Tcp { source_port, destination_port, flags: flags(told.tcp_flags) })),
        "UDP" => Some(Protocol::Udp(Udp { source_port, destination_port })),
        "SCTP" => Some(Protocol::Sctp(Sctp { source_port, destination_port })),
        "ICMP" => Some(Protocol::IcmPv4(IcmPv4 { r#type: told.icmp_type, code: told.icmp_code })),
        "ICMPV6" => Some(Protocol::IcmPv6(IcmPv6 { r#type: told.icmp_type, code: told.icmp_code })),
        _ => None,
    }
}

/// RFC 9293 section 3.1; NS (RFC 3540) is not among the eight that are told.
fn flags(bits: u32) -> Option<TcpFlags> {
    let has = |bit: u32| bits & bit != 0;
    (bits != 0).then(|| TcpFlags {
        fin: has(0x01),
        syn: has(0x02),
        rst: has(0x04),
        psh: has(0x08),
        ack: has(0x10),
        urg: has(0x20),
        ece: has(0x40),
        cwr: has(0x80),
        ns: false,
    })
}

fn endpoint(peer: &FlowPeer, naming: &impl Naming) -> Endpoint {
    let identity = identity(peer.identity);
    let mut endpoint = Endpoint { identity, ..Endpoint::default() };
    if let Some(node) = peer.workload.strip_prefix("node/").filter(|_| reserved(identity).is_some()) {
        endpoint.labels.extend(reserved(identity).map(str::to_owned));
        endpoint.labels.push(format!("k8s:kubernetes.io/hostname={node}"));
        naming.cluster().clone_into(&mut endpoint.cluster_name);
        return endpoint;
    }
    let Some(name) = NamespacedName::parse(&peer.workload) else {
        endpoint.labels.extend(reserved(identity).map(str::to_owned));
        return endpoint;
    };
    endpoint.labels = naming
        .labels(&name, peer.identity)
        .into_iter()
        .map(|(key, value)| format!("k8s:{key}={value}"))
        .chain([
            format!("k8s:io.kubernetes.pod.namespace={}", name.namespace),
            format!("k8s:io.cilium.k8s.policy.cluster={}", naming.cluster()),
        ])
        .chain(
            (!peer.service_account.is_empty())
                .then(|| format!("k8s:io.cilium.k8s.policy.serviceaccount={}", peer.service_account)),
        )
        .collect();
    endpoint.labels.sort();
    naming.cluster().clone_into(&mut endpoint.cluster_name);
    endpoint.workloads.push(Workload { name: name.name.clone(), kind: KIND.to_owned() });
    endpoint.workloads.push(Workload { name: name.name.clone(), kind: KIND.to_owned() });
    endpoint.namespace.clone_from(&name.namespace);
    endpoint.pod_name.clone_from(&name.name);
    endpoint
}

fn service(name: &str) -> Option<Service> {
    let (namespace, name) = name.split_once('/')?;
    Some(Service { name: name.to_owned(), namespace: namespace.to_owned() })
}

/// The same flow has the same name wherever it is read: made of what tells it from others, in the form of a UUID of
/// version 8 (RFC 9562 section 5.8).
fn uuid(told: &Told) -> String {
    let peer = |peer: &Option<FlowPeer>| peer.as_ref().map(|p| p.address.clone()).unwrap_or_default();
    let text = format!(
        "{}|{}|{}|{}|{}|{}|{}|{}|{}",
        told.node,
        told.interface_index,
        peer(&told.source),
        peer(&told.destination),
        told.source_port,
        told.destination_port,
        told.protocol,
        told.direction,
        told.count,
    );
    let fnv = |basis: u64| {
        text.bytes().fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let (high, low) = (told.time_unix_nanos, fnv(0xcbf2_9ce4_8422_2325));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        (high >> 4) & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        (low ^ (high & 0xf)) & 0xffff_ffff_ffff,
    )
}

fn summary(told: &Told) -> String {
    if told.count > 0 {
        return format!("{} more of these, counted and not told one by one", told.count);
    }
    if told.is_error {
        return format!("ICMP error about {}", told.protocol);
    }
    match told.protocol.as_str() {
        "TCP" => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = names.iter().enumerate().filter(|(bit, _)| told.tcp_flags & (1 << bit) != 0);
            let set: Vec<&str> = set.map(|(_, name)| *name).collect();
            if set.is_empty() { "TCP".to_owned() } else { format!("TCP Flags: {}", set.join(", ")) }
        }
        "ICMP" => format!("ICMPv4 type {} code {}", told.icmp_type, told.icmp_code),
        "ICMPV6" => format!("ICMPv6 type {} code {}", told.icmp_type, told.icmp_code),
        other => other.to_owned(),
    }
}

/// Nanoseconds since 1970 of one of Hubble's times.
pub(crate) fn unix_nanos(time: &prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.nanos).unwrap_or(0))
}

pub(crate) fn flow_nanos(flow: &hubble::Flow) -> u64 {
    flow.time.as_ref().map_or(0, unix_nanos)
}
