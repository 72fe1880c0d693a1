//! From the kernel's ring to the queue, and from the queue to the control plane.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use xds_proto::isthmus::bootstrap::v1::{FlowBatch, endpoints_client::EndpointsClient};

use super::{Names, Queue, WallClock, name};
use crate::{bootstrap::Upstream, engine::Engine, kernel::EventStream};

/// How old names and clock may be, and how often losses are counted.
const REFRESH: Duration = Duration::from_secs(1);
/// Flows that come within this time travel together.
const LINGER: Duration = Duration::from_millis(50);
/// After a stream that ended.
const RETRY: Duration = Duration::from_secs(1);
/// Batches that the control plane has not read yet. Behind them the queue fills, and drops.
const IN_FLIGHT: usize = 4;

/// Names events as they come, until the ring can't be read any more.
pub async fn collect_for_ever(mut events: EventStream, engine: Engine, node: String, queue: Queue) {
    let mut names = engine.resources(Names::of);
    let mut clock = WallClock::now();
    let mut lost_before = engine.lost_events();
    let mut changes = engine.changes();
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            event = events.next() => {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => return tracing::error!(%error, "flow events cannot be read any more"),
                };
                if changes.has_changed().unwrap_or(false) {
                    changes.borrow_and_update();
                    names = engine.resources(Names::of);
                }
                let policy = engine.kernel(|_, dictionary| {
                    dictionary.provenance(event.policy_id).unwrap_or_default().to_owned()
                });
                queue.push(name(&event, &names, &node, &policy, clock));
            }
            _ = refresh.tick() => {
                clock = WallClock::now();
                let lost = engine.lost_events();
                if lost > lost_before {
                    queue.lose(lost - lost_before);
                }
                lost_before = lost;
            }
        }
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
