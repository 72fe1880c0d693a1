//! gRPC services that filters ask.

use http::Uri;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::Exchange;
use crate::{outbound::GrpcCluster, policy::GrpcTarget};

/// Asks, and waits for as long as the target says.
///
/// # Errors
/// There is no cluster, no connection, no answer in time, or an answer that is an error.
pub(super) async fn ask<Q, A, F>(
    exchange: &Exchange<'_>,
    target: &GrpcTarget,
    message: Q,
    send: impl FnOnce(GrpcCluster, Request<Q>, Uri, usize) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let Some(cluster) = exchange.chain.shared.cluster(&target.cluster) else {
        return Err(Status::unavailable(format!("cluster {:?} does not exist", target.cluster)));
    };
    let origin: Uri = format!("http://{}", target.authority)
        .parse()
        .map_err(|_| Status::internal("the authority is no host"))?;
    let mut request = Request::new(message);
    let headers = target.metadata.iter().cloned().collect();
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    request.set_timeout(target.timeout);
    let asking = send(GrpcCluster(cluster), request, origin, target.max_answer);
    match tokio::time::timeout(target.timeout, asking).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}
