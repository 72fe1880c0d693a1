//! `Observe`: the flows that all replicas were told of, merged. A replica that does not tell of its own is named, and asked
//! again for as long as somebody follows.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::sleep,
};
use tonic::Status;
use xds_proto::isthmus::{
    admin::v1::{ObserveRequest, admin_client::AdminClient},
    bootstrap::v1::{Flow, FlowBatch, FlowSource},
};

use super::outlet::{Outlet, Over};
use crate::{app::App, doors::limits::Slot, shown, telemetry::flows::concerns};

/// Batches that wait for a slow reader.
const BACKLOG: usize = 64;
/// Flows that are sent together.
const BATCH: usize = 256;
/// Between attempts to ask another replica.
const RETRY: Duration = Duration::from_secs(1);

type Batches = Outlet<FlowBatch>;

/// Past flows first, as many as asked for from each replica, then, if wanted, every new one.
pub fn observe(
    app: Arc<App>,
    request: ObserveRequest,
    slots: [Slot; 2],
) -> impl Stream<Item = Result<FlowBatch, Status>> + Send {
    let (batches, stream) = Outlet::new(BACKLOG, &app.stop);
    if !request.this_replica_only {
        let own = app.ca.replica().id;
        for replica in app.replica.applied().replicas.values().filter(|r| r.id != own) {
            let request = ObserveRequest { this_replica_only: true, ..request.clone() };
            let theirs = Theirs {
                app: app.clone(),
                id: replica.id,
                address: replica.address.clone(),
                request,
                batches: batches.clone(),
                silent: false,
            };
            // An error is the end of the stream.
            tokio::spawn(async move { theirs.run().await });
        }
    }
    // Before anything is answered: what comes from then on is told.
    let (last, feed) = app.flows.observe(&request);
    tokio::spawn(async move { ours(last, feed, &request, &batches).await });
    stream.map(move |batch| {
        // Held as long as the stream is.
        let _ = &slots;
        batch
    })
}

async fn ours(
    last: Vec<Flow>,
    mut feed: Receiver<Flow>,
    request: &ObserveRequest,
    batches: &Batches,
) -> Result<(), Over> {
    for flows in last.chunks(BATCH) {
        batches.send(FlowBatch { flows: flows.to_vec(), ..Default::default() }).await?;
    }
    drop(last);
    if !request.follow {
        return Ok(());
    }
    loop {
        let next = tokio::select! {
            next = feed.recv() => next,
            () = batches.over() => return Err(Over),
        };
        let batch = match next {
            Ok(flow) if concerns(request, &flow) => FlowBatch { flows: vec![flow], ..Default::default() },
            Ok(_) => continue,
            Err(RecvError::Lagged(lost)) => FlowBatch { lost, ..Default::default() },
            Err(RecvError::Closed) => return Ok(()),
        };
        batches.send(batch).await?;
    }
}

/// Another replica, whose flows are wanted.
struct Theirs {
    app: Arc<App>,
    id: u64,
    address: String,
    /// Without the past flows, once they were told.
    request: ObserveRequest,
    batches: Batches,
    /// Whoever observes knows that it does not tell.
    silent: bool,
}

/// Why a replica is listened to no more.
enum Lost {
    Over,
    Status(Status),
}

impl From<Over> for Lost {
    fn from(_: Over) -> Self {
        Lost::Over
    }
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Lost::Status(status)
    }
}

impl Theirs {
    async fn run(mut self) -> Result<(), Over> {
        loop {
            let why = match self.listen().await {
                Ok(()) if !self.request.follow => return Ok(()),
                Ok(()) => "it ended the stream".to_owned(),
                Err(Lost::Over) => return Err(Over),
                Err(Lost::Status(status)) => shown::sentence(status.message()),
            };
            if !std::mem::replace(&mut self.silent, true) {
                tracing::debug!(replica = self.id, address = %self.address, why, "does not tell of its flows");
                self.say(why).await?;
            }
            if !self.request.follow {
                return Ok(());
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                () = self.batches.over() => return Err(Over),
            }
            match self.app.replica.applied().replicas.get(&self.id) {
                Some(replica) => self.address.clone_from(&replica.address),
                // It was removed, and those that it has told of have gone to others.
                None => return Ok(()),
            }
        }
    }

    async fn listen(&mut self) -> Result<(), Lost> {
        let channel = self.app.replicas.channel(&self.address);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let asked = tokio::select! {
            asked = async { AdminClient::new(channel).observe(self.request.clone()).await } => asked?,
            () = self.batches.over() => return Err(Lost::Over),
        };
        let mut stream = asked.into_inner();
        self.request.last = 0;
        if std::mem::take(&mut self.silent) {
            self.say(String::new()).await?;
        }
        loop {
            let next = tokio::select! {
                next = stream.message() => next?,
                () = self.batches.over() => return Err(Lost::Over),
            };
            let Some(batch) = next else { return Ok(()) };
            self.batches.send(batch).await?;
        }
    }

    /// That it does not tell of its flows, and why; or, without a reason, that it does again.
    async fn say(&self, silent: String) -> Result<(), Over> {
        let source = FlowSource { replica: self.id, address: self.address.clone(), silent };
        self.batches.send(FlowBatch { sources: vec![source], ..Default::default() }).await
    }
}
