//! `Wait`: a revision, followed to the data planes that it concerns.
//!
//! A data plane is concerned if its view changed with the revision: something that it is to have is new, different or
//! gone. Each replica knows that of the streams that it serves, because it compares each view with the one before
//! anyway, and tells the replica that was asked. What a wait costs is therefore in proportion to what the change
//! concerns, and to the number of streams once, when it begins.
//!
//! A replica that does not answer, and an agent that is connected nowhere, are not taken for done. A sidecar that was
//! disconnected before the change is not known of: whether the change concerns it is found out by serving it.

pub mod merge;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::resource::NamespacedName;
use mesh_store::State;
use tokio::sync::mpsc;
use tonic::Status;
use xds_proto::isthmus::admin::v1::{
    StreamReport, WaitHereRequest, WaitProgress, WaitReports, admin_client::AdminClient,
};

use self::merge::Merge;
use crate::{
    app::App,
    xds::{
        Views,
        subscribers::{Report, Standing},
    },
};

/// Wait unless told otherwise, and at most.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Between two messages to whoever waits, and between two reports of a replica.
const PACE: Duration = Duration::from_millis(100);
const REPORT_PACE: Duration = Duration::from_millis(5);
/// Between attempts to ask another replica.
const RETRY: Duration = Duration::from_millis(250);
/// Messages of replicas that wait to be read.
const BACKLOG: usize = 64;

/// How long somebody who asks for so many milliseconds is kept waiting. `field` of the request says so.
///
/// # Errors
/// Longer than any wait may last.
pub fn timeout(field: &str, milliseconds: u32) -> Result<Duration, Status> {
    let asked = Duration::from_millis(u64::from(milliseconds));
    match milliseconds {
        0 => Ok(DEFAULT_WAIT),
        _ if asked <= MAX_WAIT => Ok(asked),
        _ => Err(Status::invalid_argument(format!(
            "{field}: {milliseconds} is more than {} (10 min)",
            MAX_WAIT.as_millis()
        ))),
    }
}

enum News {
    Begin,
    Reports(WaitReports),
    Lost(String),
}

/// Waits, and tells `progress` now and then. What it is told last is also the answer. Ends early if `progress`
/// resolves to an error: nobody listens any more.
pub async fn wait<F, E>(
    app: &Arc<App>,
    revision: u64,
    timeout: Duration,
    mut progress: impl FnMut(WaitProgress) -> F,
) -> Option<WaitProgress>
where
    F: Future<Output = Result<(), E>>,
{
    let started = Instant::now();
    let now_ms = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let own = app.ca.replica().id;
    let state = app.replica.applied();
    let others = state.replicas.values().filter(|replica| replica.id != own);
    let others: Vec<(u64, String)> = others.map(|replica| (replica.id, replica.address.clone())).collect();
    let all = others.iter().cloned().chain([(own, app.config.advertised())]);
    let mut merge = Merge::new(revision, all, state.nodes.keys().map(String::as_str), 0);
    drop(state);
    let (sender, mut news) = mpsc::channel(BACKLOG);
    // Dropping the set ends its tasks.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(ours(app.clone(), own, revision, sender.clone()));
    for (id, address) in others {
        tasks.spawn(theirs(app.clone(), id, address, revision, sender.clone()));
    }
    let deadline = tokio::time::Instant::from_std(started + timeout);
    let mut changes = app.replica.changes();
    let mut told = None;
    loop {
        if merge.misses_somebody() {
            let state = app.replica.applied();
            let is_member = |id| id == own || state.replicas.contains_key(&id);
            merge.forget(|id| exists(&state, id), is_member);
        }
        let now = now_ms();
        if merge.is_settled() || tokio::time::Instant::now() >= deadline {
            let last = merge.progress(now, true);
            return progress(last.clone()).await.is_ok().then_some(last);
        }
        // A change is told at once, but not more often than the pace; the passing of time once a second.
        let due = told.is_none_or(|told: Instant| told.elapsed() >= PACE);
        if due {
            tokio::select! {
                listening = progress(merge.progress(now, false)) => if listening.is_err() {
                    return None;
                },
                // What is not read by then is old: the end is all that is left to be told.
                () = tokio::time::sleep_until(deadline) => continue,
            }
            told = Some(Instant::now());
        }
        let idle = if due { Duration::from_secs(1) } else { PACE };
        tokio::select! {
            Some((replica, news)) = news.recv() => match news {
                News::Begin => merge.on_begin(replica, now_ms()),
                News::Reports(reports) => merge.on_reports(replica, reports, now_ms()),
                News::Lost(why) => merge.on_lost(replica, why, now_ms()),
            },
            _ = changes.changed(), if merge.misses_somebody() => {}
            () = tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + idle)) => {}
            () = app.stop.cancelled() => return None,
        }
    }
}

/// What somebody who is not told of the progress reads in the end.
pub fn sentences(last: &WaitProgress) -> Vec<String> {
    let plane = |plane: &xds_proto::isthmus::admin::v1::WaitingFor| match plane.state.as_str() {
        "refused" => format!("{} (refused: {})", plane.id, plane.error),
        "disconnected" if plane.acked_revision == 0 => format!("{} (connected nowhere)", plane.id),
        "disconnected" => format!("{} (disconnected at revision {})", plane.id, plane.acked_revision),
        _ => format!("{} (at revision {})", plane.id, plane.acked_revision),
    };
    let silent = last.silent.iter().map(|silent| {
        format!(
            "replica {} at {} (has not answered: who is connected to it is not known)",
            silent.id, silent.address
        )
    });
    last.waiting_for.iter().map(plane).chain(silent).collect()
}

/// This replica's part of a wait. Ends when nobody listens.
pub async fn here<F, E>(app: &App, revision: u64, mut tell: impl FnMut(WaitReports) -> F)
where
    F: Future<Output = Result<(), E>>,
{
    let mut compiled = app.views.changed();
    if compiled.wait_for(|reached| *reached >= revision).await.is_err() {
        return;
    }
    let wait = app.subscribers.wait(revision);
    // After the wait has begun: whoever comes from here on is told of by it.
    let mut agents = app.subscribers.agents();
    let mut complete = None;
    loop {
        let news = wait.news();
        if !news.reports.is_empty() || complete != Some(news.complete) {
            complete = Some(news.complete);
            let streams = news.reports.into_iter().map(on_wire).collect();
            let agents = std::mem::take(&mut agents);
            if tell(WaitReports { complete: news.complete, streams, agents }).await.is_err() {
                return;
            }
        }
        wait.changed().await;
        // Streams answer one by one; so that they are not told one by one.
        tokio::time::sleep(REPORT_PACE).await;
    }
}

type Sender = mpsc::Sender<(u64, News)>;

async fn ours(app: Arc<App>, own: u64, revision: u64, sender: Sender) {
    here(&app, revision, |reports| sender.send((own, News::Reports(reports)))).await;
}

async fn theirs(app: Arc<App>, id: u64, address: String, revision: u64, sender: Sender) {
    loop {
        let lost = listen(&app, id, &address, revision, &sender).await.err();
        let why = lost.map_or("it ended the stream".to_owned(), |status| status.message().to_owned());
        if sender.send((id, News::Lost(why))).await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(app: &App, id: u64, address: &str, revision: u64, sender: &Sender) -> Result<(), Status> {
    let channel = app.replicas.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(crate::doors::MAX_ADMIN_MESSAGE);
    let mut reports = client.wait_here(WaitHereRequest { revision }).await?.into_inner();
    let _ = sender.send((id, News::Begin)).await;
    while let Some(message) = reports.message().await? {
        if sender.send((id, News::Reports(message))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a data plane can come back: its node is registered, its workload bound, its cluster a peer.
fn exists(state: &State, id: &str) -> bool {
    match id.split_once('~') {
        Some(("agent", node)) => state.nodes.contains_key(node),
        Some(("peer", cluster)) => state.peers.contains_key(cluster),
        Some((_, workload)) => {
            NamespacedName::parse(workload).is_some_and(|name| state.bindings.contains_key(&name))
        }
        None => false,
    }
}

fn on_wire(report: Report) -> StreamReport {
    let standing = match report.standing {
        None => "closed",
        Some(Standing::Unconcerned) => "unconcerned",
        Some(Standing::Pending) => "pending",
        Some(Standing::Acked) => "acked",
        Some(Standing::Refused) => "refused",
    };
    StreamReport {
        stream: report.stream,
        id: report.id.to_string(),
        kind: report.kind.to_owned(),
        standing: standing.to_owned(),
        acked_revision: report.acked,
        connected_unix_ms: report.connected_unix_ms,
        error: report.error,
    }
}
