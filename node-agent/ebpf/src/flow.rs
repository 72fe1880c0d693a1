//! Telling user space: counters for every packet, events for news.

use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::peer_identity;
use ebpf_shared::{Addr, Decision, Direction, Endpoint, FlowEvent, Packet, Reason, metrics};

use crate::maps::{EVENTS, LOST, METRICS};
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

/// Emits the event of a decision on a packet.
#[inline(always)]
pub fn tell(
    ifindex: u32,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    now: u64,
    decision: &Decision,
) {
    let (src_identity, dst_identity) = match direction {
        Direction::Egress => (endpoint.identity, peer_identity(&KernelPolicy, &packet.dst)),
        Direction::Ingress => (peer_identity(&KernelPolicy, &packet.src), endpoint.identity),
    };
    emit(FlowEvent {
        time: now,
        ifindex,
        src: packet.src,
        dst: packet.dst,
        src_identity,
        dst_identity,
        policy_id: decision.ruling.policy_id,
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        protocol: packet.protocol,
        direction: direction as u8,
        reason: decision.ruling.reason as u8,
        is_reply: decision.is_reply as u8,
        tcp_flags: packet.tcp_flags,
        padding: [0; 7],
    });
}

/// Emits the event of a frame that was dropped before it could be judged.
#[inline(always)]
pub fn tell_refused(
    ifindex: u32,
    direction: Direction,
    src: Addr,
    dst: Addr,
    protocol: u8,
    now: u64,
    reason: Reason,
) {
    emit(FlowEvent {
        time: now,
        ifindex,
        src,
        dst,
        protocol,
        direction: direction as u8,
        reason: reason as u8,
        ..FlowEvent::default()
    });
}

#[inline(always)]
fn emit(event: FlowEvent) {
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(0);
        }
        None => {
            if let Some(lost) = LOST.get_ptr_mut(0) {
                // SAFETY: this CPU's own cell, see `count`.
                unsafe { *lost += 1 };
            }
        }
    }
}
