//! `LoadReportingService`: tells clients what to report and how often, and takes their reports.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse, load_reporting_service_server::LoadReportingService,
        },
    },
    google::protobuf,
};

use super::Loads;
use crate::xds::{
    Client, ResourceSet, Views, kinds,
    server::{Shared, XdsServer, stream::Origin},
};

/// From one report of a client to the next.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// By which a client says that it need not be told the names of its clusters.
const SEND_ALL: &str = "envoy.lrs.supports_send_all_clusters";

#[tonic::async_trait]
impl<V: Views> LoadReportingService for XdsServer<V> {
    type StreamLoadStatsStream = ReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let origin = Origin::of(&request, None);
        let (sender, receiver) = mpsc::channel(1);
        let shared = self.shared().clone();
        let reports = request.into_inner();
        tokio::spawn(async move {
            let end = tokio::select! {
                biased;
                () = shared.draining.cancelled() => Err(Status::unavailable("this replica is shutting down")),
                () = sender.closed() => Ok(()),
                end = serve(&shared, &origin, reports, &sender) => end,
            };
            if let Err(status) = end {
                tracing::debug!(?origin, %status, "LRS stream ended");
                // Fails if the client is gone, and then nobody is left to be told.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Whatever is in progress at a client goes with its stream.
struct Reporter<'a> {
    loads: &'a Loads,
    stream: u64,
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        self.loads.lock().gone(self.stream);
    }
}

async fn serve<V: Views>(
    shared: &Arc<Shared<V>>,
    origin: &Origin,
    mut reports: Streaming<LoadStatsRequest>,
    responses: &mpsc::Sender<Result<LoadStatsResponse, Status>>,
) -> Result<(), Status> {
    let first = timeout(shared.options.first_request, reports.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no report on the stream"))??;
    let Some(first) = first else { return Ok(()) };
    let node = first.node.unwrap_or_default();
    let authorize = || shared.views.authorize(&origin.peer, &node.id, origin.workload.as_deref());
    // Before the right is asked for: what changes from here on is looked at.
    let mut revisions = shared.views.changed();
    let client = authorize()?;
    let reporter = Reporter { loads: shared.subscribers.loads(), stream: shared.subscribers.next_stream() };
    tracing::info!(%client, stream = reporter.stream, "LRS stream opened");
    let mut told: Option<LoadStatsResponse> = None;
    let mut pending = Some(first.cluster_stats);
    loop {
        let view = shared.views.resources(&client);
        if let Some(stats) = pending.take() {
            let (loads, now) = (shared.subscribers.loads(), Instant::now().into_std());
            loads.lock().report_of(reporter.stream, &stats, now);
            if let Some(caller) = caller(&client) {
                loads.voices().take(caller, &stats, |cluster| has(&view, cluster), now);
            }
        }
        let wanted = wanted(&node, &view, shared.options.load_interval);
        drop(view);
        tokio::select! {
            biased;
            report = reports.message() => {
                let Some(report) = report? else { return Ok(()) };
                pending = Some(report.cluster_stats);
            }
            permit = responses.reserve(), if told.as_ref() != Some(&wanted) => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(Ok(wanted.clone()));
                told = Some(wanted);
            }
            changed = revisions.changed() => {
                changed.map_err(|_| Status::unavailable("this replica is shutting down"))?;
                still(&client, authorize()?)?;
            }
        }
    }
}

/// Whose voice it is: the workload, whichever programs of it report.
fn caller(client: &Client) -> Option<&str> {
    match client {
        Client::Proxy { workload, .. } | Client::Grpc { workload } => Some(workload),
        // A gateway forwards to this cluster alone, a node's proxy calls for many, and the others call nobody.
        Client::Gateway { .. } | Client::NodeProxy { .. } | Client::Agent { .. } | Client::Peer { .. } => {
            None
        }
    }
}

/// Whether the client may call it at all: of what it may not know of it has nothing to say.
fn has(view: &ResourceSet, cluster: &str) -> bool {
    [view.of(kinds::CLUSTER), view.named(kinds::CLUSTER)]
        .into_iter()
        .flatten()
        .any(|all| all.contains_key(cluster))
}

/// A right lasts as long as its reason.
fn still(client: &Client, now: Client) -> Result<(), Status> {
    if now == *client {
        return Ok(());
    }
    Err(Status::unavailable(format!("this is no longer {client}: connect again")))
}

/// All that the client has, whether it can be told so in one word or not.
fn wanted(node: &Node, view: &ResourceSet, interval: Duration) -> LoadStatsResponse {
    let all = node.client_features.iter().any(|feature| feature == SEND_ALL);
    let names = view.of(kinds::CLUSTER).into_iter().flat_map(|clusters| clusters.keys());
    LoadStatsResponse {
        clusters: if all { Vec::new() } else { names.map(ToString::to_string).collect() },
        send_all_clusters: all,
        load_reporting_interval: Some(protobuf::Duration {
            seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(interval.subsec_nanos()).unwrap_or(0),
        }),
        report_endpoint_granularity: false,
    }
}

#[cfg(test)]
mod tests {
    use xds_proto::google::protobuf::Any;

    use super::*;
    use crate::xds::Encoded;

    #[test]
    fn a_client_that_can_not_send_all_is_told_the_names_of_its_clusters() {
        let mut view = ResourceSet::new(1);
        for name in ["pay", "web"] {
            view.insert(Encoded::from_any(name, Any { type_url: kinds::CLUSTER.into(), value: vec![] }));
        }
        let old = wanted(&Node::default(), &view, INTERVAL);
        assert_eq!((old.clusters, old.send_all_clusters), (vec!["pay".to_owned(), "web".to_owned()], false));
        assert_eq!(old.load_reporting_interval.unwrap().seconds, 10);
        let able = Node { client_features: vec![SEND_ALL.into()], ..Default::default() };
        let new = wanted(&able, &view, INTERVAL);
        assert_eq!((new.clusters.len(), new.send_all_clusters), (0, true));
    }
}
