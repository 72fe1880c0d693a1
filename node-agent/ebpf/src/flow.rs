//! Telling user space: counters for every packet, events for news, and under load counters for most of the news.

use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::peer_identity;
use ebpf_shared::packet::{Kind, icmp};
use ebpf_shared::{
    Addr, Decision, Direction, Endpoint, FlowCell, FlowEvent, FlowKind, Packet, Reason, Verdict, metrics,
};

use crate::maps::{EVENTS, FLOWS, LOST, METRICS, SUPPRESSED};
use crate::policy::KernelPolicy;

/// Counts a packet.
#[inline(always)]
pub fn count(ctx: &TcContext, direction: Direction, reason: Reason) {
    if let Some(cell) = METRICS.get_ptr_mut(metrics::cell(direction, reason)) {
        // SAFETY: this CPU's own cell, and programs of this type don't interrupt each other on one CPU.
        unsafe {
            (*cell).packets += 1;
            (*cell).bytes += u64::from(ctx.len());
        }
    }
}

/// Tells of a decision on a packet.
#[inline(always)]
pub fn tell(
    ctx: &TcContext,
    policy: &KernelPolicy,
    ifindex: u32,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    now: u64,
    decision: &Decision,
    service: u32,
) {
    let (src_identity, dst_identity) = match direction {
        Direction::Egress => (endpoint.identity, peer_identity(policy, &packet.dst)),
        Direction::Ingress => (peer_identity(policy, &packet.src), endpoint.identity),
    };
    let (src_port, dst_port, icmp) = ports(packet);
    let event = FlowEvent {
        time: now,
        ifindex,
        src: packet.src,
        dst: packet.dst,
        src_identity,
        dst_identity,
        policy_id: decision.ruling.policy_id,
        service,
        bytes: ctx.len(),
        src_port,
        dst_port,
        icmp,
        protocol: packet.protocol,
        direction: direction as u8,
        verdict: Verdict::of(decision.ruling.reason) as u8,
        reason: decision.ruling.reason as u8,
        is_reply: decision.is_reply as u8,
        tcp_flags: packet.tcp_flags,
        flags: if matches!(packet.kind, Kind::Error) { FlowEvent::ERROR } else { 0 }
            | if policy.claimed != 0 { FlowEvent::FROM_TUNNEL } else { 0 },
        padding: 0,
    };
    emit(&event, direction, decision.ruling.reason);
}

/// Ports, and type and code of an ICMP message, which is no port.
#[inline(always)]
fn ports(packet: &Packet) -> (u16, u16, u16) {
    let Packet { src_port, dst_port, .. } = *packet;
    if packet.is_message() {
        return (src_port, 0, dst_port);
    }
    match packet.kind {
        Kind::EchoReply => (0, dst_port, icmp::answer_to(src_port)),
        _ => (src_port, dst_port, 0),
    }
}

/// Tells of a frame that was dropped before it could be judged.
#[inline(always)]
pub fn tell_refused(
    ctx: &TcContext,
    ifindex: u32,
    direction: Direction,
    src: Addr,
    dst: Addr,
    protocol: u8,
    now: u64,
    reason: Reason,
) {
    let event = FlowEvent {
        time: now,
        ifindex,
        src,
        dst,
        bytes: ctx.len(),
        protocol,
        direction: direction as u8,
        verdict: Verdict::of(reason) as u8,
        reason: reason as u8,
        ..FlowEvent::default()
    };
    emit(&event, direction, reason);
}

/// Emits an event, or counts it with others of its kind.
#[inline(always)]
fn emit(event: &FlowEvent, direction: Direction, reason: Reason) {
    if !is_told(event) {
        if let Some(cell) = SUPPRESSED.get_ptr_mut(metrics::cell(direction, reason)) {
            // SAFETY: this CPU's own cell, see `count`.
            unsafe {
                (*cell).packets += 1;
                (*cell).bytes += u64::from(event.bytes);
            }
        }
        return;
    }
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut entry) => {
            entry.write(*event);
            entry.submit(0);
        }
        None => {
            if let Some(lost) = LOST.get_ptr_mut(metrics::cell(direction, reason)) {
                // SAFETY: this CPU's own cell, see `count`.
                unsafe { *lost += 1 };
            }
        }
    }
}

/// Whether this one is told of by itself.
#[inline(always)]
fn is_told(event: &FlowEvent) -> bool {
    let kind = FlowKind::of(event);
    match FLOWS.get_ptr_mut(&kind) {
        // SAFETY: this CPU's own cell, see `count`. One that is forgotten and used anew meanwhile costs a count by kind,
        // not the one by reason.
        Some(cell) => unsafe { (*cell).admit(event.time, u64::from(event.bytes)) },
        None => {
            // One that can't be noted is told.
            let _ = FLOWS.insert(&kind, &FlowCell::first(event.time), 0);
            true
        }
    }
}
