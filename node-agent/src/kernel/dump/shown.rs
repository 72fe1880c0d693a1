//! What the fields of each map's keys and values are called.

use std::net::{IpAddr, SocketAddr};

use ebpf_shared::{
    Addr, Backend, CapturedKey, ConnEntry, ConnKey, Direction, Endpoint, Metric, Netns, PeerKey, Proxy,
    Reason, ReverseKey, RuleRef, RuleValue, ServiceKey, ServiceValue, Sides, SockAddr, Unnamed, metrics,
    nat::{NatKey, NatValue, NodeConfig, Tuple},
    overlay::Hop,
    service::{AffinityKey, AffinityValue, AnswererKey, ReverseValue},
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

/// What holds for both directions: the number of a ruleset, or the verdict on everything.
fn sides(sides: &Sides) -> Vec<(&'static str, Value)> {
    vec![("ingress", reference(sides.ingress)), ("egress", reference(sides.egress))]
}

fn reference(by: RuleRef) -> Value {
    if by.is_uniform() {
        format!("{} by policy {}", verdict((by.set & 0xff) as u8), by.policy_id).into()
    } else {
        format!("ruleset {}", by.set).into()
    }
}

fn verdict(number: u8) -> &'static str {
    match number {
        RuleValue::ALLOW => "allow",
        RuleValue::REDIRECT => "redirect",
        RuleValue::DEFAULT_DENY => "default-deny",
        // What is none of them, denies.
        _ => "deny",
    }
}

pub(crate) fn class(number: &u32, own: &Unnamed) -> Entry {
    let workloads =
        [("workloads-ingress", own.workloads.ingress), ("workloads-egress", own.workloads.egress)];
    let workloads = workloads.map(|(way, by)| (way, reference(by)));
    entry([("class", json!(number))], sides(&own.others).into_iter().chain(workloads).collect::<Vec<_>>())
}

pub(crate) fn peer(key: &PeerKey, its: &Sides) -> Entry {
    entry([("class", json!(key.class)), ("identity", json!(key.identity))], sides(its))
}

pub(crate) fn rule(prefix: &RulePrefix, value: &RuleValue) -> Entry {
    let key = [
        ("ruleset", json!(prefix.set)),
        ("protocol", json!(prefix.traffic.protocol)),
        ("port", json!(prefix.traffic.port)),
        ("bits", json!(prefix.traffic.bits)),
    ];
    let value = [
        ("verdict", verdict(value.verdict).into()),
        ("policy", json!(value.policy_id)),
        ("audited", json!(value.flags & RuleValue::AUDIT != 0)),
        ("audited_policy", json!(value.audit_id)),
        ("proxy", json!(value.proxy)),
    ];
    entry(key, value)
}

pub(crate) fn node(cidr: &Cidr, hop: &Hop) -> Entry {
    let value = [("ipv4", address(hop.v4)), ("ipv6", address(hop.v6)), ("flags", json!(hop.flags))];
    entry([("cidr", IpNet::from(*cidr).to_string().into())], value)
}

pub(super) fn local(addr: &Addr, number: &u32) -> Entry {
    entry([("address", address(*addr))], [("number", json!(number))])
}

pub(crate) fn control(at: &SockAddr, _: &u8) -> Entry {
    entry([("address", socket(at))], [])
}

pub(crate) fn guarded(_: u32, guarded: &u32) -> Entry {
    entry([], [("guarded", json!(guarded))])
}

pub(crate) fn config(_: u32, config: &NodeConfig) -> Entry {
    let value = [
        ("ipv4", address(config.v4)),
        ("ipv6", address(config.v6)),
        ("first_port", json!(config.first_port)),
        ("last_port", json!(config.last_port)),
        ("interface", json!(config.ifindex)),
        ("tunnel", json!(config.tunnel)),
    ];
    entry([], value)
}

pub(super) fn translation(key: &NatKey, value: &NatValue) -> Entry {
    let end = |addr: Addr, port: u16| Value::from(SocketAddr::new(addr.into(), port).to_string());
    let ends = |tuple: &Tuple| {
        [("source", end(tuple.src, tuple.src_port)), ("destination", end(tuple.dst, tuple.dst_port))]
    };
    let more = [("protocol", json!(key.protocol)), ("place", json!(key.place))];
    let key: Fields = ends(&key.tuple).into_iter().chain(more).collect();
    let more = [
        ("backend", json!(value.backend)),
        ("way", json!(value.way)),
        ("is_reply", json!(value.is_reply)),
        ("answered", json!(value.answered)),
        ("closed", json!(value.closed)),
        ("seen_seconds", json!(value.seen / 1_000_000_000)),
    ];
    entry(key, ends(&value.tuple).into_iter().chain(more).collect::<Fields>())
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
        ("class", json!(value.class)),
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
        ("redirect", json!(value.redirect)),
    ];
    entry(key, value)
}

pub(super) fn answerer(key: &AnswererKey, _: &u8) -> Entry {
    entry([("service_id", json!(key.service)), ("backend", socket(&key.at))], [])
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

pub(crate) fn proxy(slot: &u32, proxy: &Proxy) -> Entry {
    let is = |flag: u32| json!(proxy.flags & flag != 0);
    let value = [
        ("name_hash", json!(format!("{:016x}", proxy.name))),
        ("alive", is(Proxy::ALIVE)),
        ("tcp", is(Proxy::TCP)),
        ("udp", is(Proxy::UDP)),
        ("ipv4_port", json!(proxy.v4)),
        ("ipv6_port", json!(proxy.v6)),
    ];
    entry([("slot", json!(slot))], value)
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
    let key = counted(cell)?;
    Some(entry(key, [("packets", json!(sum.packets)), ("bytes", json!(sum.bytes))]))
}

/// What a cell counts.
fn counted(cell: u32) -> Option<Fields> {
    let all = [Direction::Ingress, Direction::Egress].into_iter();
    let mut all = all.flat_map(|way| Reason::ALL.into_iter().map(move |reason| (way, reason)));
    let (way, why) = all.find(|(way, reason)| metrics::cell(*way, *reason) == cell)?;
    Some(vec![("direction", direction(way as u8)), ("reason", why.name().into())])
}

pub(super) fn lost(cell: u32, by_cpu: &[u64]) -> Option<Entry> {
    let events: u64 = by_cpu.iter().sum();
    let key = counted(cell).filter(|_| events > 0)?;
    Some(entry(key, [("events", json!(events))]))
}
