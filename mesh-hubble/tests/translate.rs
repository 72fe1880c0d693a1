//! A flow as an agent reports it, in Hubble's words.

#![allow(clippy::unwrap_used)]

use mesh_hubble::{Labels, Naming, translate};
use mesh_model::resource::NamespacedName;
use xds_proto::{
    hubble::flow::{DropReason, TraceObservationPoint, TrafficDirection, Verdict, layer4::Protocol},
    isthmus::bootstrap::v1::{Flow, FlowPeer},
};

struct West;

impl Naming for West {
    fn cluster(&self) -> &str {
        "west"
    }

    fn labels(&self, workload: &NamespacedName, _: u32) -> Labels {
        vec![("app".to_owned(), workload.name.clone())]
    }
}

fn dropped() -> Flow {
    Flow {
        time_unix_nanos: 1_790_000_000_123_000_000,
        node: "n1".into(),
        verdict: "DROPPED".into(),
        drop_reason: "DEFAULT_DENY".into(),
        policy: "networkpolicy/shop/quiet#default-deny-egress".into(),
        direction: "EGRESS".into(),
        source: Some(FlowPeer {
            address: "10.1.0.5".into(),
            identity: 300,
            workload: "shop/web".into(),
            service_account: "web".into(),
        }),
        destination: Some(FlowPeer { address: "192.0.2.7".into(), identity: 2, ..FlowPeer::default() }),
        protocol: "TCP".into(),
        source_port: 40_000,
        destination_port: 443,
        tcp_flags: 0x12,
        interface: "ist9".into(),
        interface_index: 9,
        service: "shop/api".into(),
        ..Flow::default()
    }
}

#[test]
fn a_drop_says_all_that_is_known_of_it() {
    let flow = translate(&dropped(), &West);
    assert_eq!((flow.verdict(), flow.drop_reason_desc()), (Verdict::Dropped, DropReason::PolicyDenied));
    assert_eq!((flow.drop_reason, flow.node_name.as_str()), (133, "west/n1"));
    assert_eq!(flow.time.unwrap().nanos, 123_000_000);
    let Some(Protocol::Tcp(tcp)) = flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) else {
        panic!("not TCP")
    };
    let flags = tcp.flags.unwrap();
    assert!(flags.syn && flags.ack && !flags.fin);
    let source = flow.source.as_ref().unwrap();
    assert_eq!((source.namespace.as_str(), source.pod_name.as_str()), ("shop", "web"));
    assert_eq!(
        source.labels,
        [
            "k8s:app=web",
            "k8s:io.cilium.k8s.policy.cluster=west",
            "k8s:io.cilium.k8s.policy.serviceaccount=web",
            "k8s:io.kubernetes.pod.namespace=shop"
        ]
    );
    assert_eq!(flow.destination.as_ref().unwrap().labels, ["reserved:world"]);
    assert_eq!(flow.destination_service.as_ref().unwrap().name, "api");
    let denied = &flow.egress_denied_by;
    assert_eq!(
        (denied.len(), denied[0].name.as_str(), denied[0].kind.as_str()),
        (1, "quiet", "NetworkPolicy")
    );
    assert!(flow.ingress_denied_by.is_empty() && flow.egress_allowed_by.is_empty());
    assert_eq!((flow.is_reply, flow.traffic_direction()), (Some(false), TrafficDirection::Egress));
    assert_eq!(flow.event_type.unwrap().sub_type, 133);
    assert_eq!(flow.summary, "TCP Flags: SYN, ACK");
    assert_eq!(flow.interface.as_ref().unwrap().name, "ist9");
}

#[test]
fn an_answer_belongs_to_the_connection_that_it_answers() {
    let answer =
        Flow { verdict: "FORWARDED".into(), drop_reason: String::new(), is_reply: true, ..dropped() };
    let flow = translate(&answer, &West);
    assert_eq!(flow.traffic_direction(), TrafficDirection::Ingress);
    assert_eq!(flow.trace_observation_point(), TraceObservationPoint::FromEndpoint);
    assert_eq!(flow.drop_reason_desc(), DropReason::Unknown);
    assert_eq!(flow.ingress_allowed_by.len(), 1);
    assert_eq!(flow.source_service.as_ref().unwrap().name, "api");
    assert_eq!(flow.destination_service, None);
}

#[test]
fn what_would_have_been_denied_is_audited_and_what_was_counted_says_so() {
    let audited =
        translate(&Flow { verdict: "AUDIT".into(), drop_reason: String::new(), ..dropped() }, &West);
    assert_eq!((audited.verdict(), audited.egress_denied_by.len()), (Verdict::Audit, 1));
    assert_eq!(audited.event_type.unwrap().r#type, 5);
    let many = translate(&Flow { count: 4_311, ..dropped() }, &West);
    assert_eq!(many.summary, "4311 more of these, counted and not told one by one");
    assert_ne!(many.uuid, translate(&dropped(), &West).uuid);
    let redirected = translate(&Flow { verdict: "REDIRECTED".into(), ..dropped() }, &West);
    assert_eq!(redirected.verdict(), Verdict::Redirected);
}

#[test]
fn a_frame_that_is_not_ip_has_neither_addresses_nor_ports() {
    let none = Some(FlowPeer { address: "::".into(), ..FlowPeer::default() });
    let odd = Flow { source: none.clone(), destination: none, protocol: "0".into(), ..dropped() };
    let flow = translate(&odd, &West);
    assert_eq!((flow.ip, flow.l4), (None, None));
}

#[test]
fn nodes_and_reserved_identities_have_the_numbers_that_hubble_knows() {
    let peer = |identity, workload: &str| {
        let source = Some(FlowPeer { identity, workload: workload.into(), ..FlowPeer::default() });
        translate(&Flow { source, ..dropped() }, &West).source.unwrap()
    };
    let node = peer(3, "node/n2");
    assert_eq!((node.identity, node.pod_name.as_str()), (6, ""));
    assert_eq!(node.labels, ["reserved:remote-node", "k8s:kubernetes.io/hostname=n2"]);
    assert_eq!(peer(5, "").labels, ["reserved:unmanaged"]);
    assert_eq!(peer(1, "node/n1").labels[0], "reserved:host");
    assert_eq!((peer(300, "").identity, peer(300, "").labels.len()), (300, 0));
}

#[test]
fn a_uuid_is_that_of_the_flow_and_of_no_other() {
    let uuid = |flow: &Flow| translate(flow, &West).uuid;
    let one = uuid(&dropped());
    assert_eq!(one, uuid(&dropped()));
    assert_ne!(one, uuid(&Flow { source_port: 40_001, ..dropped() }));
    assert_ne!(one, uuid(&Flow { time_unix_nanos: 1_790_000_000_123_000_001, ..dropped() }));
    let groups: Vec<usize> = one.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12]);
}
