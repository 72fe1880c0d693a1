//! Flow events that agents report, kept for a while and handed on to those who observe.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::broadcast;
use xds_proto::isthmus::{
    admin::v1::ObserveRequest,
    bootstrap::v1::{Flow, FlowPeer},
};

/// Flows that are kept per replica: some 10 MB.
pub const KEPT: usize = 16_384;
/// Flows that a slow observer may be behind before it loses some.
const BACKLOG: usize = 4_096;
/// Longest text of a reported flow; longer ones are cut, an agent must not fill our memory.
const MAX_TEXT: usize = 512;

/// The last flows, and a feed of new ones.
#[derive(Debug)]
pub struct FlowRing {
    kept: Mutex<VecDeque<Flow>>,
    seen: AtomicU64,
    feed: broadcast::Sender<Flow>,
}

/// How full a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Flows that are kept.
    pub kept: u64,
    /// Packets that were told of since the replica started, one by one or by counts.
    pub seen: u64,
}

impl Default for FlowRing {
    fn default() -> Self {
        Self {
            kept: Mutex::new(VecDeque::new()),
            seen: AtomicU64::new(0),
            feed: broadcast::channel(BACKLOG).0,
        }
    }
}

impl FlowRing {
    /// Takes a flow that the agent of `node` has reported; the node's name is not the agent's to choose.
    pub fn push(&self, node: &str, mut flow: Flow) {
        node.clone_into(&mut flow.node);
        for text in [
            &mut flow.verdict,
            &mut flow.drop_reason,
            &mut flow.policy,
            &mut flow.direction,
            &mut flow.protocol,
            &mut flow.interface,
            &mut flow.service,
        ] {
            cut(text);
        }
        for peer in [&mut flow.source, &mut flow.destination].into_iter().flatten() {
            cut(&mut peer.address);
            cut(&mut peer.workload);
            cut(&mut peer.service_account);
        }
        self.seen.fetch_add(flow.count.max(1), Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(flow.clone());
        // No receiver: nobody observes.
        let _ = self.feed.send(flow);
    }

    /// How many there are.
    pub fn level(&self) -> Level {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        Level { kept, seen: self.seen.load(Ordering::Relaxed) }
    }

    /// Namespaces of the workloads at both ends of those that are kept.
    pub fn namespaces(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = kept.iter().flat_map(|flow| [&flow.source, &flow.destination]).flatten();
        let of = |peer: &'_ FlowPeer| {
            let (namespace, _) = peer.workload.split_once('/')?;
            (namespace != "node").then(|| namespace.to_owned())
        };
        let names: BTreeSet<String> = ends.filter_map(of).collect();
        names.into_iter().collect()
    }

    /// The last flows that the request asks for, oldest first, and the feed of those after them.
    pub fn observe(&self, request: &ObserveRequest) -> (Vec<Flow>, broadcast::Receiver<Flow>) {
        // Under the lock, so that no flow is in both or in neither.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let feed = self.feed.subscribe();
        let wanted = (request.last as usize).min(KEPT);
        let mut last: Vec<Flow> =
            kept.iter().rev().filter(|f| concerns(request, f)).take(wanted).cloned().collect();
        last.reverse();
        (last, feed)
    }
}

/// Whether a flow is one that the request asks for. A workload's name is `<namespace>/<name>`; the namespace
/// matches on either end.
pub fn concerns(request: &ObserveRequest, flow: &Flow) -> bool {
    if !request.verdict.is_empty() && !request.verdict.eq_ignore_ascii_case(&flow.verdict) {
        return false;
    }
    let ends = || [&flow.source, &flow.destination].into_iter().flatten();
    let namespace_fits = |peer: &FlowPeer| {
        peer.workload.split_once('/').is_some_and(|(namespace, _)| namespace == request.namespace)
    };
    let name_fits = |peer: &FlowPeer| {
        peer.workload == request.workload
            || peer.workload.split_once('/').is_some_and(|(_, name)| name == request.workload)
    };
    (request.namespace.is_empty() || ends().any(namespace_fits))
        && (request.workload.is_empty() || ends().any(name_fits))
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let at = (0..=MAX_TEXT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, verdict: &str) -> Flow {
        Flow {
            verdict: verdict.to_owned(),
            source: Some(FlowPeer { workload: source.to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn the_last_flows_come_oldest_first_and_filtered() {
        let ring = FlowRing::default();
        ring.push("n1", flow("shop/web", "FORWARDED"));
        ring.push("n1", flow("shop/web", "DROPPED"));
        ring.push("n1", flow("bank/web", "DROPPED"));
        let request = ObserveRequest { last: 10, verdict: "dropped".to_owned(), ..Default::default() };
        let (last, _) = ring.observe(&request);
        let names: Vec<_> = last.iter().map(|f| f.source.clone().unwrap().workload).collect();
        assert_eq!(names, ["shop/web", "bank/web"]);
        assert_eq!(
            ring.observe(&ObserveRequest { namespace: "bank".to_owned(), ..request.clone() }).0.len(),
            1
        );
        assert_eq!(
            ring.observe(&ObserveRequest { workload: "web".to_owned(), last: 1, ..request }).0.len(),
            1
        );
    }

    #[test]
    fn what_an_agent_says_of_its_node_is_replaced_and_long_texts_are_cut() {
        let ring = FlowRing::default();
        let lie = Flow { node: "n2".to_owned(), policy: "é".repeat(10_000), ..flow("a/b", "DROPPED") };
        ring.push("n1", lie);
        let (last, _) = ring.observe(&ObserveRequest { last: 1, ..Default::default() });
        assert_eq!(last[0].node, "n1");
        assert!(last[0].policy.len() <= MAX_TEXT);
    }

    #[test]
    fn the_ring_keeps_a_bounded_number() {
        let ring = FlowRing::default();
        for _ in 0..KEPT + 10 {
            ring.push("n1", flow("a/b", "DROPPED"));
        }
        assert_eq!(ring.observe(&ObserveRequest { last: u32::MAX, ..Default::default() }).0.len(), KEPT);
    }
}
