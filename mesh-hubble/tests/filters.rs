//! Every field of a filter, by a table: what fits, what does not, and what is refused.

#![allow(clippy::unwrap_used)]

use mesh_hubble::Filters;
use xds_proto::hubble::flow::{
    Dns, DropReason, Endpoint, EventTypeFilter, Flow, FlowFilter, Http, HttpHeader, IcmPv6, Ip, IpVersion,
    Layer4, Layer7, NetworkInterface, Service, Tcp, TcpFlags, TraceContext, TraceParent, TrafficDirection,
    Verdict, Workload, flow_filter::Experimental, layer4::Protocol, layer7::Record,
};

/// A dropped TCP segment of IPv4 from shop/web to the world.
fn tcp() -> Flow {
    Flow {
        verdict: Verdict::Dropped.into(),
        drop_reason_desc: DropReason::PolicyDenied.into(),
        ip: Some(Ip {
            source: "10.1.0.5".into(),
            destination: "192.0.2.7".into(),
            ip_version: IpVersion::IPv4.into(),
            encrypted: false,
        }),
        l4: Some(Layer4 {
            protocol: Some(Protocol::Tcp(Tcp {
                source_port: 40_000,
                destination_port: 443,
                flags: Some(TcpFlags { syn: true, ack: true, ..TcpFlags::default() }),
            })),
        }),
        source: Some(Endpoint {
            identity: 300,
            namespace: "shop".into(),
            pod_name: "web-7d4".into(),
            labels: vec!["k8s:app=web".into(), "k8s:io.kubernetes.pod.namespace=shop".into()],
            workloads: vec![Workload { name: "web".into(), kind: "Workload".into() }],
            cluster_name: "west".into(),
            ..Endpoint::default()
        }),
        destination: Some(Endpoint {
            identity: 2,
            labels: vec!["reserved:world".into()],
            ..Endpoint::default()
        }),
        destination_names: vec!["api.example.com".into()],
        destination_service: Some(Service { name: "api".into(), namespace: "shop".into() }),
        node_name: "west/n1".into(),
        traffic_direction: TrafficDirection::Egress.into(),
        is_reply: Some(false),
        event_type: Some(xds_proto::hubble::flow::CiliumEventType { r#type: 1, sub_type: 133 }),
        interface: Some(NetworkInterface { index: 9, name: "lxc9".into() }),
        uuid: "u-1".into(),
        trace_context: Some(TraceContext { parent: Some(TraceParent { trace_id: "t-1".into() }) }),
        ..Flow::default()
    }
}

/// A forwarded reply of ICMPv6.
fn ping() -> Flow {
    Flow {
        verdict: Verdict::Forwarded.into(),
        ip: Some(Ip {
            source: "2001:db8::1".into(),
            destination: "fd00::5".into(),
            ip_version: IpVersion::IPv6.into(),
            encrypted: false,
        }),
        l4: Some(Layer4 { protocol: Some(Protocol::IcmPv6(IcmPv6 { r#type: 129, code: 0 })) }),
        source: Some(Endpoint { identity: 2, ..Endpoint::default() }),
        destination: Some(Endpoint {
            identity: 301,
            namespace: "bank".into(),
            pod_name: "pay".into(),
            ..Endpoint::default()
        }),
        node_name: "east/db-2".into(),
        traffic_direction: TrafficDirection::Ingress.into(),
        is_reply: Some(true),
        uuid: "u-2".into(),
        ..Flow::default()
    }
}

/// An HTTP request and a DNS query.
fn http() -> Flow {
    let headers = vec![HttpHeader { key: "X-Trace".into(), value: "1".into() }];
    let record = Http {
        code: 404,
        method: "GET".into(),
        url: "http://pay.shop:8080/v1/cards?x=1".into(),
        protocol: "HTTP/1.1".into(),
        headers,
    };
    Flow { l7: Some(Layer7 { record: Some(Record::Http(record)), ..Layer7::default() }), ..tcp() }
}

fn dns() -> Flow {
    let record = Dns { query: "api.example.com.".into(), ..Dns::default() };
    Flow {
        l7: Some(Layer7 { record: Some(Record::Dns(record)), ..Layer7::default() }),
        uuid: "u-4".into(),
        ..ping()
    }
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

macro_rules! filter {
    ($($field:ident: $value:expr),*) => { FlowFilter { $($field: $value,)* ..FlowFilter::default() } };
}

/// Name of the field, a filter, and which of tcp, ping, http, dns it fits.
fn table() -> Vec<(&'static str, FlowFilter, [bool; 4])> {
    let flags = |syn, fin| TcpFlags { syn, fin, ..TcpFlags::default() };
    let event = |r#type, match_sub_type, sub_type| EventTypeFilter { r#type, match_sub_type, sub_type };
    let web = |name: &str, kind: &str| Workload { name: name.into(), kind: kind.into() };
    vec![
        ("source_ip", filter!(source_ip: texts(&["10.1.0.5"])), [true, false, true, false]),
        ("source_ip", filter!(source_ip: texts(&["10.0.0.0/8", "2001:db8::/32"])), [true, true, true, true]),
        ("destination_ip", filter!(destination_ip: texts(&["192.0.2.0/24"])), [true, false, true, false]),
        ("source_pod", filter!(source_pod: texts(&["shop/web"])), [true, false, true, false]),
        ("source_pod", filter!(source_pod: texts(&["web"])), [true, false, true, false]),
        ("source_pod", filter!(source_pod: texts(&["bank/web"])), [false, false, false, false]),
        ("destination_pod", filter!(destination_pod: texts(&["bank/"])), [false, true, false, true]),
        (
            "destination_fqdn",
            filter!(destination_fqdn: texts(&["*.Example.com."])),
            [true, false, true, false],
        ),
        ("source_fqdn", filter!(source_fqdn: texts(&["*"])), [false, false, false, false]),
        ("source_label", filter!(source_label: texts(&["k8s:app=web"])), [true, false, true, false]),
        ("source_label", filter!(source_label: texts(&["app in (web, api)"])), [true, false, true, false]),
        ("source_label", filter!(source_label: texts(&["app!=web"])), [false, true, false, true]),
        (
            "destination_label",
            filter!(destination_label: texts(&["reserved:world"])),
            [true, false, true, false],
        ),
        (
            "destination_service",
            filter!(destination_service: texts(&["shop/api"])),
            [true, false, true, false],
        ),
        ("source_service", filter!(source_service: texts(&["shop/"])), [false, false, false, false]),
        ("source_cluster_name", filter!(source_cluster_name: texts(&["west"])), [true, false, true, false]),
        (
            "destination_cluster_name",
            filter!(destination_cluster_name: texts(&["west"])),
            [false, false, false, false],
        ),
        ("source_port", filter!(source_port: texts(&["40000"])), [true, false, true, false]),
        ("destination_port", filter!(destination_port: texts(&["80", "443"])), [true, false, true, false]),
        ("source_identity", filter!(source_identity: vec![300]), [true, false, true, false]),
        ("destination_identity", filter!(destination_identity: vec![301, 302]), [false, true, false, true]),
        ("source_workload", filter!(source_workload: vec![web("web", "")]), [true, false, true, false]),
        (
            "source_workload",
            filter!(source_workload: vec![web("web", "Deployment")]),
            [false, false, false, false],
        ),
        (
            "destination_workload",
            filter!(destination_workload: vec![web("web", "")]),
            [false, false, false, false],
        ),
        (
            "verdict",
            filter!(verdict: vec![Verdict::Forwarded.into(), Verdict::Audit.into()]),
            [false, true, false, true],
        ),
        (
            "traffic_direction",
            filter!(traffic_direction: vec![TrafficDirection::Egress.into()]),
            [true, false, true, false],
        ),
        ("ip_version", filter!(ip_version: vec![IpVersion::IPv6.into()]), [false, true, false, true]),
        (
            "drop_reason_desc",
            filter!(drop_reason_desc: vec![DropReason::PolicyDenied.into()]),
            [true, false, true, false],
        ),
        ("drop_reason_desc", filter!(drop_reason_desc: vec![0]), [false, false, false, false]),
        ("event_type", filter!(event_type: vec![event(1, false, 0)]), [true, false, true, false]),
        ("event_type", filter!(event_type: vec![event(1, true, 0)]), [false, false, false, false]),
        ("reply", filter!(reply: vec![true]), [false, true, false, true]),
        ("reply", filter!(reply: vec![true, false]), [true, true, true, true]),
        ("encrypted", filter!(encrypted: vec![true]), [false, false, false, false]),
        ("tcp_flags", filter!(tcp_flags: vec![flags(true, false)]), [true, false, true, false]),
        ("tcp_flags", filter!(tcp_flags: vec![flags(true, true)]), [false, false, false, false]),
        (
            "interface",
            filter!(interface: vec![NetworkInterface { index: 9, name: String::new() }]),
            [true, false, true, false],
        ),
        (
            "interface",
            filter!(interface: vec![NetworkInterface { index: 9, name: "eth0".into() }]),
            [false, false, false, false],
        ),
        ("uuid", filter!(uuid: texts(&["u-2"])), [false, true, false, false]),
        ("trace_id", filter!(trace_id: texts(&["t-1"])), [true, false, true, false]),
        ("protocol", filter!(protocol: texts(&["TCP"])), [true, false, true, false]),
        ("protocol", filter!(protocol: texts(&["icmp"])), [false, true, false, true]),
        ("protocol", filter!(protocol: texts(&["http", "dns"])), [false, false, true, true]),
        ("node_name", filter!(node_name: texts(&["west/n*"])), [true, false, true, false]),
        ("node_name", filter!(node_name: texts(&["db-2"])), [false, true, false, true]),
        ("node_name", filter!(node_name: texts(&["east/"])), [false, true, false, true]),
        ("http_status_code", filter!(http_status_code: texts(&["4+"])), [false, false, true, false]),
        ("http_status_code", filter!(http_status_code: texts(&["200"])), [false, false, false, false]),
        ("http_method", filter!(http_method: texts(&["get"])), [false, false, true, false]),
        ("http_path", filter!(http_path: texts(&["^/v1/c.*s$"])), [false, false, true, false]),
        ("http_url", filter!(http_url: texts(&["pay\\.shop.*x=1"])), [false, false, true, false]),
        (
            "http_header",
            filter!(http_header: vec![HttpHeader { key: "x-trace".into(), value: "1".into() }]),
            [false, false, true, false],
        ),
        ("dns_query", filter!(dns_query: texts(&["^api\\."])), [false, false, false, true]),
        // All fields have to fit.
        ("", filter!(source_pod: texts(&["shop/"]), protocol: texts(&["http"])), [false, false, true, false]),
        ("", FlowFilter::default(), [true, true, true, true]),
    ]
}

#[test]
fn every_field_fits_what_it_says() {
    let flows = [tcp(), ping(), http(), dns()];
    for (field, filter, expected) in table() {
        let only = Filters::new(std::slice::from_ref(&filter), &[]).unwrap();
        let but = Filters::new(&[], std::slice::from_ref(&filter)).unwrap();
        for (flow, expected) in flows.iter().zip(expected) {
            assert_eq!(only.fit(flow), expected, "{field}: {filter:?} for {}", flow.uuid);
            assert_eq!(but.fit(flow), !expected, "without {field}: {filter:?} for {}", flow.uuid);
        }
    }
}

/// The fields of `FlowFilter` in the .proto itself, so that none is forgotten here.
fn declared() -> Vec<String> {
    let text = include_str!("../../xds-proto/proto/flow/flow.proto");
    let body = text.split("message FlowFilter {").nth(1).unwrap().split("\n}").next().unwrap();
    body.lines()
        .filter_map(|line| line.trim().strip_prefix("repeated "))
        .filter(|line| !line.contains("cel_expression"))
        .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect()
}

#[test]
fn the_table_has_every_field_that_is_declared_and_the_rest_is_refused() {
    let refused = [
        ("source_ip_xlated", filter!(source_ip_xlated: texts(&["10.0.0.1"]))),
        ("node_labels", filter!(node_labels: texts(&["a=b"]))),
        ("ip_trace_id", filter!(ip_trace_id: vec![1])),
        (
            "experimental.cel_expression",
            filter!(experimental: Some(Experimental { cel_expression: texts(&["true"]) })),
        ),
    ];
    for (field, filter) in &refused {
        let error = Filters::new(&[], &[FlowFilter::default(), filter.clone()]).unwrap_err().to_string();
        assert_eq!(error, format!("blacklist[1].{field} is not served: no flow here has it"));
    }
    let table = table();
    for field in declared() {
        let is_known =
            table.iter().any(|(name, ..)| *name == field) || refused.iter().any(|(name, _)| *name == field);
        assert!(is_known, "{field} is in the interface and not in this test");
    }
}

#[test]
fn what_can_t_be_read_is_refused_by_its_place() {
    let long = "a".repeat(2_000);
    for (filter, place) in [
        (filter!(source_ip: texts(&["10.0.0.0/33"])), "whitelist[0].source_ip"),
        (filter!(destination_port: texts(&["http"])), "whitelist[0].destination_port"),
        (filter!(protocol: texts(&["kafka"])), "whitelist[0].protocol"),
        (filter!(http_status_code: texts(&["9+"])), "whitelist[0].http_status_code"),
        (filter!(http_path: texts(&["("])), "whitelist[0].http_path"),
        (filter!(dns_query: texts(&["a{1000}{1000}"])), "whitelist[0].dns_query"),
        (filter!(source_pod: texts(&["/"])), "whitelist[0].source_pod"),
        (filter!(source_label: texts(&["=x"])), "whitelist[0].source_label"),
        (filter!(node_name: texts(&["/"])), "whitelist[0].node_name"),
        (filter!(verdict: vec![99]), "whitelist[0].verdict"),
        (filter!(http_method: texts(&[&long])), "whitelist[0].http_method"),
    ] {
        let error = Filters::new(&[filter], &[]).unwrap_err().to_string();
        assert!(error.starts_with(place), "{error}");
        assert!(error.len() < 300, "{error}");
    }
    let many = vec![FlowFilter::default(); 65];
    assert!(Filters::new(&many, &[]).unwrap_err().to_string().contains("65 filters"));
    let values = filter!(source_identity: (0..1_025).collect());
    assert!(Filters::new(&[values], &[]).unwrap_err().to_string().contains("1024"));
}
