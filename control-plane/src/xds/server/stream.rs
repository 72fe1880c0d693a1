//! One stream, from its first request to its end.

use std::{sync::Arc, time::SystemTime};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{REVISION_METADATA, Shared, WORKLOAD_METADATA, codec::Frame, peer, wire::Wire};
use crate::{
    doors::{
        bucket::{Bucket, Rate},
        limits::LimitReached,
    },
    shown,
    telemetry::XdsMetrics,
    xds::{
        Client, PeerIdentity, ResourceSet, Session, Views,
        csds::{dump, journal::Journal},
        heartbeat::{self, Heartbeats},
        session::{Event, Request, SessionError},
        subscribers::{Connected, Opening},
    },
};

/// Longest node id that is kept for display.
const MAX_NODE_ID_BYTES: usize = 256;
/// Names in the text of a refusal.
const MAX_NAMES_SHOWN: usize = 3;

/// What is known of a stream before its first request.
#[derive(Debug)]
pub(in crate::xds) struct Origin {
    pub(in crate::xds) peer: PeerIdentity,
    pub(in crate::xds) workload: Option<String>,
    /// Revision that the client has ACKed on an earlier stream.
    revision: Option<u64>,
    /// The type, on a service of one type.
    only: Option<&'static str>,
}

impl Origin {
    /// What the connection and the metadata of a call say.
    pub(in crate::xds) fn of<T>(request: &tonic::Request<T>, only: Option<&'static str>) -> Self {
        let text = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        Self {
            peer: peer(request),
            workload: text(WORKLOAD_METADATA).map(str::to_owned),
            revision: text(REVISION_METADATA).and_then(|revision| revision.parse().ok()),
            only,
        }
    }

    /// On a service of one type requests need not name it, and must not name another.
    fn normalise(&self, request: impl Into<Request>) -> Result<Request, Status> {
        let mut request = request.into();
        match self.only {
            Some(only) if request.type_url.is_empty() => request.type_url = only.to_owned(),
            Some(only) if request.type_url != only => {
                return Err(Status::invalid_argument(format!(
                    "type_url is {:?} on a service of {only}",
                    shown::word(&request.type_url)
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
    responses: mpsc::Sender<Result<Box<Frame>, Status>>,
) {
    let end = tokio::select! {
        // The end comes first: who connects to a server that drains is not to be served one more response.
        biased;
        () = shared.draining.cancelled() => Err(Status::unavailable("this replica is shutting down")),
        () = responses.closed() => Ok(()),
        end = run::<W, V>(&shared, &origin, requests, &responses) => end,
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
    responses: &mpsc::Sender<Result<Box<Frame>, Status>>,
) -> Result<(), Status> {
    let first = timeout(shared.options.first_request, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no request on the stream"))??;
    let Some(first) = first else { return Ok(()) };
    let opened = Instant::now();
    let node = W::node(&first).cloned().map(dump::trimmed).unwrap_or_default();
    let node_id = node.id.clone();
    let authorize = || shared.views.authorize(&origin.peer, &node_id, origin.workload.as_deref());
    let client = authorize()?;
    let first = origin.normalise(first)?;
    let mut revisions = shared.views.changed();
    // What the client reports of its past, in metadata or in its first request. Of other types it reports later.
    catch_up(shared, &mut revisions, &client, origin.revision.max(past(&first))).await?;

    let stream = shared.subscribers.next_stream();
    let revision = *revisions.borrow_and_update();
    let connected = shared.subscribers.connect(stream, opening::<W>(&client, &node_id, revision))?;
    // What changes from here on it is told of; so now, and not before, is looked at what there is.
    let set = look(shared, &client).await?;
    let revision = revision.max(set.revision);
    // After that look: the revision that was looked at counts as known, and may be the one that took the right away.
    if authorize()? != client {
        return Err(another(&client));
    }
    connected.opened(revision);
    let metrics = shared.subscribers.metrics();
    metrics.opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    tracing::info!(%client, stream, protocol = ?W::PROTOCOL, revision, "xDS stream opened");
    let mut session = Session::new(W::PROTOCOL, stream, shared.options.limits, set, revision)
        .for_features(&node.client_features);
    let mut heartbeats = Heartbeats::new(stream, shared.options.heartbeat);
    let mut rate = request_rate(shared, opened);
    let mut pending = Some(first);
    // Since when the pending request waits for what it names to be there, and until when it may.
    let mut behind: Option<(u64, Instant)> = None;
    let mut journal = Journal::default();
    let mut inspected = shared.subscribers.inspectors().register(stream);
    let name = client.to_string();
    let frame = |response| Box::new(Frame { response, control_plane: shared.options.identifier.clone() });

    let reopened = opened + shared.options.reopen;
    let tells = shared.views.tells();
    let mut more = true;
    // Something has happened since the registry was told last.
    let mut moved = true;
    loop {
        let due = connected.due();
        let revision = (*revisions.borrow_and_update()).max(due.map_or(0, |due| due.revision));
        if revision > session.revision() {
            let new = look(shared, &client).await?;
            let revision = revision.max(new.revision);
            // A right lasts as long as its reason: the workload may have moved, the peer been removed. Asked after
            // the look, which counts as knowing its revision, and before anything of it is sent.
            if authorize()? != client {
                return Err(another(&client));
            }
            if session.is_concerned_by(&new) {
                let before = session.revision().max(due.map_or(0, |due| due.before));
                connected.view_changed(before, revision);
            }
            session.on_snapshot(new, revision);
            (more, moved) = (true, true);
        }
        let ahead = pending.as_ref().and_then(|request| ahead(request, &session));
        behind = ahead.map(|seen| behind.unwrap_or_else(|| (seen, Instant::now() + shared.options.catch_up)));
        if let Some(request) = pending.take_if(|_| behind.is_none()) {
            let now = Instant::now();
            if !rate.take(now.into_std()) {
                return Err(too_fast(shared, &client).into());
            }
            connected.heard(now.into_std());
            if request.type_url == heartbeat::TYPE_URL {
                heartbeats.on_request(&request, now.into_std());
                connected.heartbeat(heartbeats.unanswered_since());
            } else {
                let events = session.on_request(request).map_err(over_limit)?;
                journal.note(&events, SystemTime::now());
                note(&client, &connected, metrics, events);
                (more, moved) = (true, true);
            }
        }
        if std::mem::take(&mut moved) {
            connected.update(session.statuses(), session.revision());
        }
        session.on_time(opened.elapsed());
        let beat = heartbeats.due();
        // What lives for a time only is to be prolonged then, if there is nothing to send before.
        let prolong = session.next_deadline().filter(|_| !more);
        tokio::select! {
            // News first: what is sent should be the newest, and a burst of requests is answered as a whole.
            biased;
            request = requests.message(), if pending.is_none() => {
                let Some(request) = request? else { return Ok(()) };
                pending = Some(origin.normalise(request)?);
            }
            // Looked at above.
            () = connected.woken() => {}
            changed = revisions.changed(), if !tells || behind.is_some() => {
                changed.map_err(|_| Status::unavailable("this replica is shutting down"))?;
            }
            () = sleep_until(behind.map_or(opened, |(_, until)| until)), if behind.is_some() => {
                let (seen, _) = behind.unwrap_or((0, opened));
                return Err(sent_away(&client, seen, session.revision()));
            }
            question = inspected.question() => {
                let whose = dump::Whose { node: &node, client: &name, replica: &shared.options.identifier };
                question.answer(|contents| dump::client_config(whose, &session, &journal, contents), whose);
            }
            () = sleep_until(opened + prolong.unwrap_or_default()), if prolong.is_some() => more = true,
            () = sleep_until(reopened), if session.is_reopening() => {
                session.reopened();
                (more, moved) = (true, true);
            }
            permit = responses.reserve(), if more => {
                let Ok(permit) = permit else { return Ok(()) };
                match session.next_response() {
                    Some(response) => {
                        metrics.sent(&response);
                        journal.sent(&response, SystemTime::now());
                        tracing::debug!(
                            %client, type_url = %response.type_url, revision = response.revision, nonce = response.nonce,
                            resources = response.resources.len(), removed = response.removed.len(), "sent"
                        );
                        permit.send(Ok(frame(response)));
                    }
                    None => more = false,
                }
                moved = true;
            }
            // Last: whoever has configuration to answer shows by that that it is alive.
            permit = when(beat, responses), if beat.is_some() => {
                let Ok(permit) = permit else { return Ok(()) };
                let now = std::time::Instant::now();
                let response = heartbeats.next(now, connected.seen_revision(), connected.sent_revision());
                connected.heartbeat(Some(now));
                metrics.sent(&response);
                permit.send(Ok(frame(response)));
            }
        }
    }
}

/// Room for a response, not before it is due.
async fn when<T>(
    due: Option<std::time::Instant>,
    responses: &mpsc::Sender<T>,
) -> Result<mpsc::Permit<'_, T>, mpsc::error::SendError<()>> {
    if let Some(due) = due {
        sleep_until(due.into()).await;
    }
    responses.reserve().await
}

fn request_rate<V>(shared: &Shared<V>, now: Instant) -> Bucket {
    let per_second = shared.subscribers.gate().limits.xds_requests;
    Bucket::new(Rate { per_second, burst: per_second.saturating_mul(10) }, now.into_std())
}

fn too_fast<V>(shared: &Shared<V>, client: &Client) -> LimitReached {
    let gate = shared.subscribers.gate();
    gate.count(LimitReached {
        name: "xds-requests",
        value: gate.limits.xds_requests,
        unit: "requests a second on one stream",
        who: client.to_string(),
        next: "connect again and ask less often",
    })
}

/// No client is served an older revision than it has ACKed, so a replica that lags behind it waits, and in the end
/// sends it to another one.
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
        Err(_) => Err(sent_away(client, seen, *revisions.borrow())),
    }
}

fn sent_away(client: &Client, seen: u64, revision: u64) -> Status {
    tracing::warn!(%client, seen, revision, "sent a client away that has seen what this replica has not");
    Status::unavailable(format!(
        "this replica is at revision {revision} and the client has seen {seen}: ask another replica"
    ))
}

/// What a first request says of a revision that the client has accepted on an earlier stream. That of a heartbeat is of
/// the replica, and no proof that the client has anything of it.
fn past(request: &Request) -> Option<u64> {
    request.seen.filter(|_| request.type_url != heartbeat::TYPE_URL)
}

/// The same, if the type is new on the stream and the revision newer than what there is: the request is to wait.
fn ahead(request: &Request, session: &Session) -> Option<u64> {
    past(request).filter(|seen| *seen > session.revision() && !session.knows(&request.type_url))
}

/// The first client of a kind has translated what all of them share: not on a thread that serves. A new Sidecar object, for
/// one, makes a kind of its own.
async fn look<V: Views>(shared: &Shared<V>, client: &Client) -> Result<Arc<ResourceSet>, Status> {
    if shared.views.at_hand(client) {
        return Ok(shared.views.resources(client));
    }
    let (views, of) = (shared.views.clone(), client.clone());
    let made = tokio::task::spawn_blocking(move || views.resources(&of)).await;
    made.map_err(|error| Status::internal(format!("the view of {client} can't be made: {error}")))
}

fn another(client: &Client) -> Status {
    Status::unavailable(format!("this is no longer {client}: connect again"))
}

fn opening<W: Wire>(client: &Client, node_id: &str, revision: u64) -> Opening {
    Opening {
        client: client.clone(),
        id: client.to_string().into(),
        kind: client.kind(),
        node_id: node_id[..node_id.floor_char_boundary(MAX_NODE_ID_BYTES)].to_owned(),
        protocol: W::PROTOCOL,
        revision,
    }
}

fn over_limit(error: SessionError) -> Status {
    match error {
        SessionError::NoType => Status::invalid_argument(error.to_string()),
        _ => Status::resource_exhausted(error.to_string()),
    }
}

fn note(client: &Client, connected: &Connected<'_>, metrics: &XdsMetrics, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Acked { type_url, revision } => {
                metrics.acked(&type_url);
                tracing::debug!(%client, %type_url, revision, "ACK");
            }
            Event::Nacked { type_url, revision, error, resources } => {
                metrics.nacked(&type_url);
                let error = shown::sentence(error);
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
                metrics.stale_nonces.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::debug!(%client, %type_url, "answer to an older response")
            }
            Event::UnknownType { type_url } => {
                tracing::warn!(%client, %type_url, "subscribed to a type that is not served here");
            }
        }
    }
}
