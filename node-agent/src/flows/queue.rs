//! Flows that wait to be sent: the newest are kept, and what was dropped is counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use xds_proto::isthmus::bootstrap::v1::{Flow, FlowBatch};

/// Flows that wait, about 300 bytes each.
const CAPACITY: usize = 8192;
/// Flows of one message.
const BATCH: usize = 512;

/// A bounded queue. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    inner: Arc<Mutex<Inner>>,
    filled: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    flows: VecDeque<Flow>,
    /// Not told yet.
    lost: u64,
    lost_ever: u64,
}

impl Queue {
    /// Adds a flow; the oldest goes when there is no room.
    pub fn push(&self, flow: Flow) {
        let mut inner = self.lock();
        if inner.flows.len() >= CAPACITY {
            inner.flows.pop_front();
            inner.lost += 1;
            inner.lost_ever += 1;
        }
        inner.flows.push_back(flow);
        drop(inner);
        self.filled.notify_one();
    }

    /// Notes flows that were lost before they came here.
    pub fn lose(&self, count: u64) {
        let mut inner = self.lock();
        inner.lost += count;
        inner.lost_ever += count;
    }

    /// Flows lost since the agent started.
    pub fn lost_ever(&self) -> u64 {
        self.lock().lost_ever
    }

    /// Waits until there is something to send.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The oldest flows, up to a batch of them; `None` if there are none.
    pub fn take(&self) -> Option<FlowBatch> {
        let mut inner = self.lock();
        if inner.flows.is_empty() {
            return None;
        }
        let count = inner.flows.len().min(BATCH);
        let flows = inner.flows.drain(..count).collect();
        Some(FlowBatch { flows, lost: std::mem::take(&mut inner.lost), ..FlowBatch::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_flows_are_kept_and_the_lost_ones_counted_once() {
        let queue = Queue::default();
        for port in 0..u32::try_from(CAPACITY).unwrap() + 3 {
            queue.push(Flow { source_port: port, ..Default::default() });
        }
        queue.lose(4);
        let batch = queue.take().unwrap();
        assert_eq!((batch.flows.len(), batch.flows[0].source_port, batch.lost), (BATCH, 3, 7));
        assert_eq!(queue.take().unwrap().lost, 0);
        assert_eq!(queue.lost_ever(), 7);
        while queue.take().is_some() {}
        assert!(queue.take().is_none());
    }
}
