//! What the fields of each map's keys and values are called.

use std::net::{IpAddr, SocketAddr};

use ebpf_shared::{
    Addr, Backend, CapturedKey, Class, ConnEntry, ConnKey, Direction, Endpoint, Metric, Netns, PolicyValue,
    Reason, ReverseKey, ServiceKey, ServiceValue, SockAddr, metrics,
    service::{AffinityKey, AffinityValue, ReverseValue},
};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Entry, Fields};
use crate::kernel::{RulePrefix, identities::Cidr, services::Source};

fn entry(key: impl Into<Fields>, value: impl Into<Fields>) -> Entry {
    Entry { key: key.into(), value: value.into() }
}

fn address(addr: Addr) -> Value {
    if addr.is_unspecified() { Value::Null } else { IpAddr::from(addr).to_string().into() }
}

fn socket(at: &SockAddr) -> Value {
    SocketAddr::new(at.addr.into(), at.port).to_string().into()
}

fn direction(number: u8) -> Value {
    match number {
        0 => "ingress".into(),
        1 => "egress".into(),
        other => other.into(),
    }
}

fn reason(number: u8) -> Value {
    Reason::from_number(number).map_or_else(|| number.into(), |reason| reason.name().into())
}

pub(super) fn format(_: u32, format: &u32) -> Entry {
    entry([], [("format", json!(format))])
}

pub(crate) fn host(addr: &Addr, identity: &u32) -> Entry {
    entry([("address", address(*addr))], [("identity", json!(identity))])
}

pub(crate) fn cidr(cidr: &Cidr, identity: &u32) -> Entry {
    entry([("cidr", IpNet::from(*cidr).to_string().into())], [("identity", json!(identity))])
}

pub(crate) fn endpoint(ifindex: &u32, endpoint: &Endpoint) -> Entry {
    let value = [
        ("identity", json!(endpoint.identity)),
        ("class", json!(endpoint.class)),
        ("ipv4", address(endpoint.v4)),
        ("ipv6", address(endpoint.v6)),
        ("flags", json!(endpoint.flags)),
        ("incarnation", json!(endpoint.incarnation)),
    ];
    entry([("interface", json!(ifindex))], value)
}

pub(super) fn class(number: &u32, class: &Class) -> Entry {
    let value = [
        ("denies_ingress", json!(class.flags & Class::DENY_INGRESS != 0)),
        ("denies_egress", json!(class.flags & Class::DENY_EGRESS != 0)),
        ("ingress_policy", json!(class.ingress_policy)),
        ("egress_policy", json!(class.egress_policy)),
    ];
    entry([("class", json!(number))], value)
}

pub(super) fn policy(prefix: &RulePrefix, value: &PolicyValue) -> Entry {
    let key = [
        ("class", json!(prefix.key.class)),
        ("direction", direction(prefix.key.direction)),
        ("identity", json!(prefix.key.identity)),
        ("protocol", json!(prefix.key.protocol)),
        ("port", json!(u16::from_be_bytes(prefix.key.port))),
        ("port_bits", json!(prefix.port_bits)),
    ];
    entry(key, [("allows", json!(value.allows())), ("policy", json!(value.policy_id))])
}

pub(super) fn connection(key: &ConnKey, value: &ConnEntry) -> Entry {
    let key = [
        ("interface", json!(key.ifindex)),
        ("peer", SocketAddr::new(key.peer.into(), key.peer_port).to_string().into()),
        ("port", json!(key.own_port)),
        ("protocol", json!(key.protocol)),
        ("began", direction(key.began)),
        ("incarnation", json!(key.incarnation)),
    ];
    let value = [
        ("seen_seconds", json!(value.seen / 1_000_000_000)),
        ("policy", json!(value.policy_id)),
        ("cut", reason(value.cut)),
        ("answered", json!(value.answered)),
        ("closed_forward", json!(value.closed_forward)),
        ("closed_reply", json!(value.closed_reply)),
        ("midstream", json!(value.midstream)),
    ];
    entry(key, value)
}

pub(super) fn service(key: &ServiceKey, value: &ServiceValue) -> Entry {
    let key = [
        ("service", SocketAddr::new(key.addr.into(), key.port).to_string().into()),
        ("protocol", json!(key.protocol)),
        ("scope", json!(key.scope)),
    ];
    let value = [
        ("id", json!(value.id)),
        ("table", json!(value.table)),
        ("size", json!(value.size)),
        ("only", json!(value.only)),
        ("affinity_seconds", json!(value.affinity_seconds)),
        ("flags", json!(value.flags)),
        ("proxy_port", json!(value.proxy_port)),
    ];
    entry(key, value)
}

pub(super) fn backend(number: &u32, backend: &Backend) -> Entry {
    let value = [
        ("backend", socket(&backend.at)),
        ("service_id", json!(backend.service)),
        ("weight", json!(backend.weight)),
        ("flags", json!(backend.flags)),
    ];
    entry([("number", json!(number))], value)
}

pub(super) fn source(source: &Source, _: &u8) -> Entry {
    entry([("service_id", json!(source.service())), ("from", source.net().to_string().into())], [])
}

pub(super) fn affinity(key: &AffinityKey, value: &AffinityValue) -> Entry {
    let key = [("service_id", json!(key.service)), ("client", IpAddr::from(key.client).to_string().into())];
    entry(key, [("backend", json!(value.backend)), ("seen_seconds", json!(value.seen / 1_000_000_000))])
}

pub(super) fn reverse(key: &ReverseKey, value: &ReverseValue) -> Entry {
    let key = [("socket", json!(key.socket)), ("backend", socket(&key.real))];
    let value = [
        ("service", socket(&value.believed)),
        ("number", json!(value.backend)),
        ("namespace", json!(value.netns)),
    ];
    entry(key, value)
}

pub(crate) fn netns(cookie: &u64, netns: &Netns) -> Entry {
    entry([("namespace", json!(cookie))], [("sidecar", json!(netns.has_sidecar()))])
}

pub(crate) fn captured(key: &CapturedKey, captured: &u8) -> Entry {
    let key = [("namespace", json!(key.netns)), ("port", json!(key.port)), ("protocol", json!(key.protocol))];
    entry(key, [("captured", json!(captured))])
}

pub(super) fn metric(cell: u32, by_cpu: &[Metric]) -> Option<Entry> {
    let sum = by_cpu.iter().fold(Metric::default(), |sum, cpu| Metric {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
    });
    if sum.packets == 0 {
        return None;
    }
    let all = [Direction::Ingress, Direction::Egress].into_iter();
    let mut all = all.flat_map(|way| Reason::ALL.into_iter().map(move |reason| (way, reason)));
    let (way, why) = all.find(|(way, reason)| metrics::cell(*way, *reason) == cell)?;
    let key = [("direction", direction(way as u8)), ("reason", why.name().into())];
    Some(entry(key, [("packets", json!(sum.packets)), ("bytes", json!(sum.bytes))]))
}

pub(super) fn lost(_: u32, by_cpu: &[u64]) -> Option<Entry> {
    Some(entry([], [("events", json!(by_cpu.iter().sum::<u64>()))]))
}
