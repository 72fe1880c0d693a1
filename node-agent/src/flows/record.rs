//! One flow as it is kept: numbers only. Names come when somebody asks.

use ebpf_shared::{FlowEvent, FlowKind, Metric};

/// A flow, or so many of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub unix_nanos: u64,
    /// 0: the one packet of the event. Else so many more like it, counted by the kernel and not told one by one.
    pub count: u64,
    /// What the kernel told; of a count, of the last one that it did tell.
    pub event: FlowEvent,
}

impl Record {
    /// An event.
    pub fn one(unix_nanos: u64, event: FlowEvent) -> Self {
        Self { unix_nanos, count: 0, event }
    }

    /// So many of a kind. `last` is the last one of it that was told, if that is remembered.
    pub fn many(unix_nanos: u64, kind: &FlowKind, counted: Metric, last: Option<&FlowEvent>) -> Self {
        let event = last.copied().unwrap_or_else(|| {
            let is_egress = kind.direction == ebpf_shared::Direction::Egress as u8;
            let (src_identity, dst_identity) =
                if is_egress { (0, kind.identity) } else { (kind.identity, 0) };
            FlowEvent {
                ifindex: kind.ifindex,
                src_identity,
                dst_identity,
                policy_id: kind.policy_id,
                dst_port: kind.port,
                protocol: kind.protocol,
                direction: kind.direction,
                verdict: kind.verdict,
                reason: kind.reason,
                is_reply: kind.is_reply,
                ..FlowEvent::default()
            }
        });
        let bytes = u32::try_from(counted.bytes / counted.packets.max(1)).unwrap_or(u32::MAX);
        Self { unix_nanos, count: counted.packets, event: FlowEvent { bytes, ..event } }
    }
}
