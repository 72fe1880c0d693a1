//! One stream, from its first request to its end.

use std::{sync::Arc, time::SystemTime};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{Shared, wire::Wire};
use crate::xds::{
    Client, PeerIdentity, Session, Subscriber, Views,
    session::{Event, Request, SessionError},
    subscribers::Connected,
};

/// Longest node id that is kept for display.
const MAX_NODE_ID_BYTES: usize = 256;
/// Names in the text of a refusal.
const MAX_NAMES_SHOWN: usize = 3;

/// What is known of a stream before its first request.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) peer: PeerIdentity,
    pub(super) workload: Option<String>,
    /// Revision that the client has ACKed on an earlier stream.
    pub(super) revision: Option<u64>,
    /// The type, on a service of one type.
    pub(super) only: Option<&'static str>,
}

impl Origin {
    /// On a service of one type requests need not name it, and must not name another.
    fn normalise(&self, request: impl Into<Request>) -> Result<Request, Status> {
        let mut request = request.into();
        match self.only {
            Some(only) if request.type_url.is_empty() => request.type_url = only.to_owned(),
            Some(only) if request.type_url != only => {
                return Err(Status::invalid_argument(format!(
                    "type_url is {:?} on a service of {only}",
                    request.type_url
                )));
            }
            _ => {}
        }
        Ok(request)
    }
}

pub(super) async fn serve<W: Wire, V: Views>(
    shared: Arc<Shared<V>>,
    origin: Origin,
    requests: Streaming<W::Request>,
    responses: mpsc::Sender<Result<W::Response, Status>>,
) {
    let end = tokio::select! {
        end = run::<W, V>(&shared, &origin, requests, &responses) => end,
        () = shared.draining.cancelled() => Err(Status::unavailable("this replica is shutting down")),
        () = responses.closed() => Ok(()),
    };
    if let Err(status) = end {
        tracing::debug!(peer = ?origin.peer, workload = ?origin.workload, %status, "xDS stream ended");
        // Fails if the client is gone, and then nobody is left to be told.
        let _ = responses.send(Err(status)).await;
    }
}

async fn run<W: Wire, V: Views>(
    shared: &Shared<V>,
    origin: &Origin,
    mut requests: Streaming<W::Request>,
    responses: &mpsc::Sender<Result<W::Response, Status>>,
) -> Result<(), Status> {
    let first = timeout(shared.options.first_request, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no request on the stream"))??;
    let Some(first) = first else { return Ok(()) };
    let opened = Instant::now();
    let node_id = W::node(&first).map(|node| node.id.clone()).unwrap_or_default();
    let authorize = || shared.views.authorize(&origin.peer, &node_id, origin.workload.as_deref());
    let client = authorize()?;
    let mut revisions = shared.views.changed();
    // What the client reported of its past, in metadata or in its first request, which belong to the same stream.
    let seen = origin.revision.max(W::revision(&first));
    catch_up(shared, &mut revisions, &client, seen).await?;

    let stream = shared.subscribers.next_stream();
    let connected = shared.subscribers.connect(subscriber::<W>(stream, &client, &node_id));
    tracing::info!(%client, stream, protocol = ?W::PROTOCOL, "xDS stream opened");
    let revision = *revisions.borrow_and_update();
    let set = shared.views.resources(&client);
    let revision = revision.max(set.revision);
    let mut session = Session::new(W::PROTOCOL, stream, shared.options.limits, set, revision);
    let first = origin.normalise(first)?;
    note(&client, &connected, session.on_request(first).map_err(over_limit)?);

    let reopened = opened + shared.options.reopen;
    let mut more = true;
    loop {
        connected.update(&session.status(), session.revision());
        tokio::select! {
            // News first: what is sent should be the newest, and a burst of requests is answered as a whole.
            biased;
            request = requests.message() => {
                let Some(request) = request? else { return Ok(()) };
                let request = origin.normalise(request)?;
                note(&client, &connected, session.on_request(request).map_err(over_limit)?);
                more = true;
            }
            changed = revisions.changed() => {
                changed.map_err(|_| Status::unavailable("this replica is shutting down"))?;
                // A right lasts as long as its reason: the workload may have moved, the peer been removed.
                if authorize()? != client {
                    return Err(Status::unavailable(format!("this is no longer {client}: connect again")));
                }
                let revision = *revisions.borrow_and_update();
                let set = shared.views.resources(&client);
                let revision = revision.max(set.revision);
                session.on_snapshot(set, revision);
                more = true;
            }
            () = sleep_until(reopened), if session.is_reopening() => {
                session.reopened();
                more = true;
            }
            permit = responses.reserve(), if more => {
                let Ok(permit) = permit else { return Ok(()) };
                match session.next_response() {
                    Some(response) => {
                        tracing::debug!(
                            %client, type_url = %response.type_url, revision = response.revision, nonce = response.nonce,
                            resources = response.resources.len(), removed = response.removed.len(), "sent"
                        );
                        permit.send(Ok(W::frame(response, &shared.options.identifier)));
                    }
                    None => more = false,
                }
            }
        }
    }
}

/// No client is served an older revision than it has ACKed, so a replica that lags behind it waits.
async fn catch_up<V: Views>(
    shared: &Shared<V>,
    revisions: &mut watch::Receiver<u64>,
    client: &Client,
    seen: Option<u64>,
) -> Result<(), Status> {
    let Some(seen) = seen else { return Ok(()) };
    let caught_up = timeout(shared.options.catch_up, revisions.wait_for(|revision| *revision >= seen))
        .await
        .map(|watched| watched.is_ok());
    match caught_up {
        Ok(true) => Ok(()),
        Ok(false) => Err(Status::unavailable("this replica is shutting down")),
        Err(_) => {
            let revision = *revisions.borrow();
            tracing::warn!(%client, seen, revision, "client saw a revision that did not come: serving an older one");
            Ok(())
        }
    }
}

fn subscriber<W: Wire>(stream: u64, client: &Client, node_id: &str) -> Subscriber {
    Subscriber {
        stream,
        id: client.to_string(),
        kind: client.kind(),
        node_id: node_id[..node_id.floor_char_boundary(MAX_NODE_ID_BYTES)].to_owned(),
        protocol: W::PROTOCOL,
        sent_revision: 0,
        acked_revision: 0,
        settled_revision: 0,
        nacks: 0,
        last_error: None,
        nacked_revision: None,
        connected_at: SystemTime::now(),
        acked: Default::default(),
    }
}

fn over_limit(error: SessionError) -> Status {
    match error {
        SessionError::NoType => Status::invalid_argument(error.to_string()),
        _ => Status::resource_exhausted(error.to_string()),
    }
}

fn note(client: &Client, connected: &Connected<'_>, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Acked { type_url, revision } => tracing::debug!(%client, %type_url, revision, "ACK"),
            Event::Nacked { type_url, revision, error, resources } => {
                tracing::warn!(%client, %type_url, revision, %error, ?resources, "NACK");
                let kind = type_url.rsplit('.').next().unwrap_or(&type_url);
                let shown: Vec<_> = resources.iter().take(MAX_NAMES_SHOWN).map(|name| &**name).collect();
                let others = match resources.len().saturating_sub(MAX_NAMES_SHOWN) {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                connected.nacked(format!("{kind} {}{others}: {error}", shown.join(", ")));
            }
            Event::StaleNonce { type_url } => {
                tracing::debug!(%client, %type_url, "answer to an older response")
            }
            Event::UnknownType { type_url } => {
                tracing::warn!(%client, %type_url, "subscribed to a type that is not served here");
            }
        }
    }
}
