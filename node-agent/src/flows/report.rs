//! From the kernel's ring and counters to the node's ring and the queue, and from the queue to the control plane.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use xds_proto::isthmus::{
    bootstrap::v1::{FlowBatch, endpoints_client::EndpointsClient},
    local::v1::DnsNote,
};

use super::{Counts, Entry, Namer, Parties, Queue, Record, Ring, WallClock, counts::Look};
use crate::{bootstrap::Upstream, engine::Engine, kernel::EventStream};

/// How old the clock may be, and how often counters are looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// Flows that come within this time travel together.
const LINGER: Duration = Duration::from_millis(50);
/// After a stream that ended.
const RETRY: Duration = Duration::from_secs(1);
/// Batches that the control plane has not read yet. Behind them the queue fills, and drops.
const IN_FLIGHT: usize = 4;

/// Where flows go.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Collector {
    pub engine: Engine,
    pub namer: Namer,
    pub ring: Ring,
    pub queue: Queue,
}

impl Collector {
    /// Takes events as they come, and counts each second, until the kernel's ring can't be read any more.
    pub async fn collect_for_ever(self, mut events: EventStream) {
        let mut clock = WallClock::now();
        let mut counts = Counts::default();
        let mut lost_before = self.engine.lost_events();
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                event = events.next() => {
                    let event = match event {
                        Ok(event) => event,
                        Err(error) => return tracing::error!(%error, "flow events cannot be read any more"),
                    };
                    counts.saw(&event);
                    self.take(Record::one(clock.unix_nanos(event.time), event));
                }
                _ = refresh.tick() => {
                    clock = WallClock::now();
                    let lost = self.engine.lost_events();
                    if lost > lost_before {
                        self.queue.lose(lost - lost_before);
                        self.ring.push(Entry::Lost(lost - lost_before));
                    }
                    lost_before = lost;
                    // In this order, see `Look`.
                    let suppressed = self.engine.suppressed();
                    let look = Look { suppressed, kinds: self.engine.flow_kinds() };
                    let now = WallClock::wall_nanos();
                    for record in counts.since(look, now) {
                        self.take(record);
                    }
                    self.ring.tick(now / 1_000_000_000);
                }
            }
        }
    }

    /// Takes a query to DNS.
    pub fn take_dns(&self, ends: (SocketAddr, SocketAddr), note: DnsNote, parties: Parties) {
        let flow = self.namer.names().dns(ends, note, parties);
        self.ring.push(Entry::Told(Arc::new(flow.clone())));
        self.queue.push(flow);
    }

    fn take(&self, record: Record) {
        self.ring.push(Entry::Flow(record));
        self.queue.push(self.namer.name(&self.namer.names(), &record));
    }
}

/// Sends batches for ever. Stop it by dropping the future.
pub async fn report_for_ever(queue: Queue, upstream: Upstream) {
    loop {
        if let Err(reason) = report(&queue, &upstream).await {
            tracing::debug!(reason, "flows are not being reported");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn report(queue: &Queue, upstream: &Upstream) -> Result<(), String> {
    let channel = upstream.connect().await.map_err(|error| error.to_string())?;
    let (sender, receiver) = mpsc::channel::<FlowBatch>(IN_FLIGHT);
    let mut client = EndpointsClient::new(channel);
    let call = client.report_flows(ReceiverStream::new(receiver));
    let feed = async {
        loop {
            // Room first: a batch that is taken out of the queue must not be lost with the stream.
            let Ok(room) = sender.reserve().await else { return };
            let batch = loop {
                if let Some(batch) = queue.take() {
                    break batch;
                }
                queue.filled().await;
                tokio::time::sleep(LINGER).await;
            };
            room.send(batch);
        }
    };
    tokio::select! {
        ended = call => match ended {
            Ok(_) => Err("the control plane ended the stream".to_owned()),
            Err(status) => Err(status.message().to_owned()),
        },
        () = feed => Err("the stream is closed".to_owned()),
    }
}
