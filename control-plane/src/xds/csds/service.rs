//! `ClientStatusDiscoveryService`: the clients of all replicas, for administrators.

use std::{sync::Arc, time::Duration};

use clustermesh::csds::SILENT_REPLICAS;
use futures::future::join_all;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};
use xds_proto::{
    Message,
    envoy::service::status::v3::{
        ClientConfig, ClientStatusRequest, ClientStatusResponse,
        client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
        client_status_discovery_service_server::{
            ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
        },
    },
};

use super::{Inspectors, matcher::Matchers};
use crate::{
    admin::{
        outlet::{Answers, Outlet},
        status::LOCAL_ONLY,
    },
    app::App,
    authz::Action,
    doors::MAX_SMALL_MESSAGE,
};

/// Largest answer, of all replicas together. Name fewer clients, or leave the contents out.
pub const MAX_ANSWER_BYTES: usize = 128 << 20;
/// How long one stream, or another replica, may take to answer.
const ASK: Duration = Duration::from_secs(10);

/// The service, ready to be added to a tonic server.
pub fn server(app: Arc<App>) -> ClientStatusDiscoveryServiceServer<CsdsService> {
    ClientStatusDiscoveryServiceServer::new(CsdsService(app))
        .max_decoding_message_size(MAX_SMALL_MESSAGE)
        .max_encoding_message_size(usize::MAX)
}

/// The service.
#[derive(Debug, Clone)]
pub struct CsdsService(pub Arc<App>);

#[tonic::async_trait]
impl ClientStatusDiscoveryService for CsdsService {
    type StreamClientStatusStream = Answers<ClientStatusResponse>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let app = self.0.clone();
        let caller = app.admit(request.extensions(), Action::ClientStatus)?;
        let slots = app.gate.watch(&caller)?;
        let local = request.metadata().contains_key(LOCAL_ONLY);
        let (_, extensions, mut requests) = request.into_parts();
        let (answers, stream) = Outlet::new(1, &app.stop);
        tokio::spawn(async move {
            let mut refused = Box::pin(app.refused_later(extensions.clone(), Action::ClientStatus));
            loop {
                let next = tokio::select! {
                    next = requests.message() => next,
                    () = answers.over() => break,
                    refusal = &mut refused => Err(refusal),
                };
                // Each question costs what one alone would, and counts like it.
                let next = next.and_then(|next| match next {
                    Some(_) => app.admit(&extensions, Action::ClientStatus).map(|_| next),
                    None => Ok(None),
                });
                let answer = match next {
                    // Who is missing is told in the answer to a single question only: a stream has no room for it.
                    Ok(Some(request)) => answer(&app, request, local).await.map(|(answer, _)| answer),
                    Ok(None) => break,
                    Err(status) => Err(status),
                };
                match answer {
                    Ok(answer) => {
                        if answers.send(answer).await.is_err() {
                            break;
                        }
                    }
                    Err(status) => {
                        answers.end(status);
                        break;
                    }
                }
            }
            drop(slots);
        });
        Ok(Response::new(stream))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.0.admit(request.extensions(), Action::ClientStatus)?;
        let local = request.metadata().contains_key(LOCAL_ONLY);
        let (answer, silent) = answer(&self.0, request.into_inner(), local).await?;
        let mut response = Response::new(answer);
        let silent: Vec<String> = silent.iter().map(u64::to_string).collect();
        if let Ok(list) = MetadataValue::try_from(silent.join(","))
            && !silent.is_empty()
        {
            response.metadata_mut().insert(SILENT_REPLICAS, list);
        }
        Ok(response)
    }
}

/// The clients of all replicas, and the replicas that did not tell of theirs.
async fn answer(
    app: &App,
    request: ClientStatusRequest,
    local: bool,
) -> Result<(ClientStatusResponse, Vec<u64>), Status> {
    let matchers = Matchers::new(request.node_matchers.clone());
    let matchers = Arc::new(matchers.map_err(|error| Status::invalid_argument(error.to_string()))?);
    let contents = !request.exclude_resource_contents;
    let mut size = 0;
    let mut config = of_replica(app.subscribers.inspectors(), &matchers, contents, &mut size).await?;
    let mut silent = Vec::new();
    if !local {
        for (replica, theirs) in elsewhere(app, &request).await {
            let Some(theirs) = theirs else {
                silent.push(replica);
                continue;
            };
            size += theirs.encoded_len();
            within(size)?;
            config.extend(theirs.config);
        }
    }
    Ok((ClientStatusResponse { config }, silent))
}

/// The clients of one replica, one after the other; `size` counts the bytes of the answer.
///
/// # Errors
/// The answer would be too large, or a stream does not answer.
pub async fn of_replica(
    inspectors: &Inspectors,
    matchers: &Arc<Matchers>,
    contents: bool,
    size: &mut usize,
) -> Result<Vec<ClientConfig>, Status> {
    let mut configs = Vec::new();
    let mut last = 0;
    loop {
        let asked = tokio::time::timeout(ASK, inspectors.next(last, matchers, contents)).await;
        let asked = asked
            .map_err(|_| Status::deadline_exceeded(format!("a stream did not answer within {ASK:?}")))?;
        let Some((stream, config)) = asked else { return Ok(configs) };
        last = stream;
        if let Some(config) = config {
            *size += config.encoded_len();
            within(*size)?;
            configs.push(config);
        }
    }
}

fn within(size: usize) -> Result<(), Status> {
    if size <= MAX_ANSWER_BYTES {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "the answer would be larger than {MAX_ANSWER_BYTES} bytes: name fewer clients in node_matchers, or set \
         exclude_resource_contents"
    )))
}

async fn elsewhere(app: &App, request: &ClientStatusRequest) -> Vec<(u64, Option<ClientStatusResponse>)> {
    let own = app.ca.replica().id;
    let state = app.replica.applied();
    let others = state.replicas.values().filter(|replica| replica.id != own);
    let answers = join_all(others.map(|replica| async move {
        let answer = tokio::time::timeout(ASK, ask(app, &replica.address, request.clone())).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {ASK:?}"))));
        // The clients of a replica that is down go to another one, where they are seen.
        let answer = answer.inspect_err(
            |error| tracing::warn!(replica = replica.id, %error, "does not tell of its clients"),
        );
        (replica.id, answer.ok())
    }));
    answers.await
}

async fn ask(app: &App, address: &str, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
    let channel = app.replicas.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = Request::new(request);
    request.metadata_mut().insert(LOCAL_ONLY, MetadataValue::from_static("1"));
    let mut client =
        ClientStatusDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    Ok(client.fetch_client_status(request).await?.into_inner())
}
