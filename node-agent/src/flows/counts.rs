//! From the kernel's counters, which only grow, to what is new since the last look. PURE.

use std::collections::BTreeMap;

use ebpf_shared::{Direction, FlowEvent, FlowKind, Metric, Reason};

use super::record::Record;

/// Kinds whose last event is remembered.
const MAX_KINDS: usize = ebpf_shared::limits::FLOWS as usize;

/// A look at the counters. The totals are read first: what the kernel counts meanwhile is then in the kinds at least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Look {
    pub suppressed: Vec<(Direction, Reason, Metric)>,
    pub kinds: BTreeMap<FlowKind, Metric>,
}

/// What was told and suppressed up to the last look.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// The last event of each kind: lends its addresses to those that were not told.
    last: BTreeMap<FlowKind, FlowEvent>,
    kinds: BTreeMap<FlowKind, Metric>,
    /// By direction and reason: told as counts so far.
    told: BTreeMap<(u8, u8), u64>,
    began: bool,
}

impl Counts {
    /// Notes an event.
    pub fn saw(&mut self, event: &FlowEvent) {
        if self.last.len() >= MAX_KINDS {
            self.last.clear();
        }
        self.last.insert(FlowKind::of(event), *event);
    }

    /// What was suppressed since the last look, by kind; and of kinds that the kernel has forgotten, by direction and
    /// reason. The first look tells nothing: what was before this agent was another's to tell.
    pub fn since(&mut self, look: Look, unix_nanos: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for (kind, now) in &look.kinds {
            // A kind that was forgotten and came back counts from 0.
            let before = self.kinds.get(kind).copied().filter(|before| before.packets <= now.packets);
            let before = before.unwrap_or_default();
            let more = Metric {
                packets: now.packets - before.packets,
                bytes: now.bytes.saturating_sub(before.bytes),
            };
            if more.packets == 0 {
                continue;
            }
            *self.told.entry((kind.direction, kind.reason)).or_default() += more.packets;
            if self.began {
                records.push(Record::many(unix_nanos, kind, more, self.last.get(kind)));
            }
        }
        for (direction, reason, total) in &look.suppressed {
            let told = self.told.entry((*direction as u8, *reason as u8)).or_default();
            let left = total.packets.saturating_sub(*told);
            if left == 0 {
                continue;
            }
            *told += left;
            if self.began {
                let verdict = ebpf_shared::Verdict::of(*reason) as u8;
                let (direction, reason) = (*direction as u8, *reason as u8);
                let kind = FlowKind { direction, reason, verdict, ..FlowKind::default() };
                let rest = Metric { packets: left, bytes: 0 };
                records.push(Record::many(unix_nanos, &kind, rest, None));
            }
        }
        self.kinds = look.kinds;
        self.began = true;
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(total: u64, kinds: &[(u16, u64)]) -> Look {
        let metric = |packets| Metric { packets, bytes: packets * 60 };
        let kind =
            |port| FlowKind { port, reason: Reason::DefaultDeny as u8, verdict: 1, ..FlowKind::default() };
        Look {
            suppressed: vec![(Direction::Ingress, Reason::DefaultDeny, metric(total))],
            kinds: kinds.iter().map(|(port, packets)| (kind(*port), metric(*packets))).collect(),
        }
    }

    fn counts(records: &[Record]) -> Vec<(u16, u64)> {
        records.iter().map(|record| (record.event.dst_port, record.count)).collect()
    }

    #[test]
    fn what_was_suppressed_is_told_once_and_adds_up_whatever_the_kernel_forgets() {
        let mut seen = Counts::default();
        assert!(seen.since(look(10, &[(80, 10)]), 1).is_empty(), "of the agent before");
        let mut all = 10;
        for (now, wanted) in [
            (look(15, &[(80, 15)]), vec![(80, 5)]),
            (look(15, &[(80, 15)]), vec![]),
            (look(27, &[(80, 20), (443, 7)]), vec![(80, 5), (443, 7)]),
            // 80 was displaced with 3 more that nobody looked at, and came back with 2.
            (look(32, &[(80, 2), (443, 7)]), vec![(80, 2), (0, 3)]),
            // A packet came between the two reads: next time the total has it too.
            (look(32, &[(80, 3), (443, 7)]), vec![(80, 1)]),
            (look(33, &[(80, 3), (443, 7)]), vec![]),
            (look(36, &[]), vec![(0, 3)]),
        ] {
            let records = seen.since(now, 2);
            assert_eq!(counts(&records), wanted);
            all += records.iter().map(|record| record.count).sum::<u64>();
        }
        assert_eq!(all, 36);
    }

    #[test]
    fn a_count_has_the_addresses_of_the_last_one_that_was_told() {
        let mut seen = Counts::default();
        let event = FlowEvent {
            src: ebpf_shared::Ip4::LOOPBACK.into(),
            src_port: 4_000,
            dst_port: 80,
            reason: Reason::DefaultDeny as u8,
            verdict: 1,
            ..FlowEvent::default()
        };
        seen.saw(&event);
        seen.since(Look::default(), 1);
        let records = seen.since(look(2, &[(80, 2)]), 9);
        assert_eq!(records, [Record { unix_nanos: 9, count: 2, event: FlowEvent { bytes: 60, ..event } }]);
    }
}
