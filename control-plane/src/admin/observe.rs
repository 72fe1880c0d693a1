//! `Observe`: the flows that all replicas were told of, merged.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use xds_proto::isthmus::{
    admin::v1::{ObserveRequest, admin_client::AdminClient},
    bootstrap::v1::FlowBatch,
};

use crate::{app::App, doors::limits::Slot, telemetry::flows::concerns};

/// Batches that wait for a slow reader.
const BACKLOG: usize = 64;
/// Flows that are sent together.
const BATCH: usize = 256;

/// Past flows first, as many as asked for from each replica, then, if wanted, every new one.
pub fn observe(
    app: Arc<App>,
    request: ObserveRequest,
    slots: [Slot; 2],
) -> impl Stream<Item = Result<FlowBatch, Status>> + Send {
    let (batches, receiver) = mpsc::channel(BACKLOG);
    if !request.this_replica_only {
        let own = app.ca.replica().id;
        for replica in app.replica.applied().replicas.values().filter(|r| r.id != own) {
            let (app, address, batches) = (app.clone(), replica.address.clone(), batches.clone());
            let request = ObserveRequest { this_replica_only: true, ..request.clone() };
            tokio::spawn(async move {
                if let Err(error) = theirs(&app, &address, request, &batches).await {
                    // The flows of the others are worth having without those of one that is down.
                    tracing::debug!(%address, %error, "cannot observe another replica's flows");
                }
            });
        }
    }
    tokio::spawn(async move { ours(&app, &request, &batches).await });
    ReceiverStream::new(receiver).map(move |batch| {
        // Held as long as the stream is.
        let _ = &slots;
        batch
    })
}

type Batches = mpsc::Sender<Result<FlowBatch, Status>>;

async fn ours(app: &App, request: &ObserveRequest, batches: &Batches) {
    let (last, mut feed) = app.flows.observe(request);
    for flows in last.chunks(BATCH) {
        let batch = FlowBatch { flows: flows.to_vec(), lost: 0 };
        if batches.send(Ok(batch)).await.is_err() {
            return;
        }
    }
    if !request.follow {
        return;
    }
    loop {
        let next = tokio::select! {
            next = feed.recv() => next,
            () = batches.closed() => return,
            () = app.stop.cancelled() => return,
        };
        let batch = match next {
            Ok(flow) if concerns(request, &flow) => FlowBatch { flows: vec![flow], lost: 0 },
            Ok(_) => continue,
            Err(RecvError::Lagged(lost)) => FlowBatch { flows: Vec::new(), lost },
            Err(RecvError::Closed) => return,
        };
        if batches.send(Ok(batch)).await.is_err() {
            return;
        }
    }
}

async fn theirs(app: &App, address: &str, request: ObserveRequest, batches: &Batches) -> Result<(), Status> {
    let channel = app.replicas.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut stream = AdminClient::new(channel).observe(request).await?.into_inner();
    loop {
        let next = tokio::select! {
            next = stream.message() => next?,
            () = batches.closed() => return Ok(()),
            () = app.stop.cancelled() => return Ok(()),
        };
        let Some(batch) = next else { return Ok(()) };
        if batches.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
    }
}
