//! Appends that take longer than a heartbeat.
//!
//! openraft gives an append one heartbeat's time, drops it and sends the same entries again. A large entry would
//! never arrive, and its follower, hearing nothing else, would stand for election. So an append is kept here when
//! openraft drops it, and the next attempt waits for the same one. Meanwhile heartbeats go out beside it.
//!
//! It is no task of its own: most appends are answered at once, and a task costs two more hand-overs.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::time::{Instant, timeout};

use super::client::{CallError, Target};
use crate::raft::{
    config::APPEND_PATIENCE,
    types::{LogId, TypeConfig, Vote},
};

type Answer = Result<AppendEntriesResponse<u64>, CallError>;
type Call = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An append that is under way. Ends with its owner.
pub(super) struct Appending {
    vote: Vote,
    after: Option<LogId>,
    last: Option<LogId>,
    started: Instant,
    /// Locked by nobody: openraft wants its clients to be `Sync`, which a future need not be.
    call: Mutex<Call>,
}

impl Appending {
    fn start(target: &Target, request: AppendEntriesRequest<TypeConfig>) -> Self {
        let (vote, after) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        let target = target.clone();
        let call: Call = Box::pin(async move { target.append(request).await });
        Self { vote, after, last, started: Instant::now(), call: Mutex::new(call) }
    }

    /// To be waited for, and to be given up and waited for again.
    fn call(&mut self) -> &mut Call {
        self.call.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it carries the entries that a request begins with: one leader has one entry after another.
    fn begins(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        self.vote == request.vote
            && self.after == request.prev_log_id
            && self.started.elapsed() < APPEND_PATIENCE
    }
}

/// Sends entries, or goes on waiting for the answer to those that were sent before. After `patience` it sees to
/// it that the follower hears of the leader, and answers that no entry has arrived so far.
pub(super) async fn entries(
    target: &Target,
    slot: &mut Option<Appending>,
    request: AppendEntriesRequest<TypeConfig>,
    patience: Duration,
) -> Answer {
    let wanted = request.entries.last().map(|entry| entry.log_id);
    let heartbeat = AppendEntriesRequest {
        vote: request.vote,
        prev_log_id: request.prev_log_id,
        leader_commit: request.leader_commit,
        entries: Vec::new(),
    };
    let under_way = slot.take().filter(|appending| appending.begins(&request));
    // It stays in the slot while it is waited for: whoever calls may lose patience first.
    let appending = slot.insert(under_way.unwrap_or_else(|| Appending::start(target, request)));
    let answer = match timeout(patience, appending.call()).await {
        Ok(answer) => answer,
        // A follower without any entry has nothing to agree on yet.
        Err(_) if heartbeat.prev_log_id.is_none() => appending.call().await,
        Err(_) => {
            let arrived = heartbeat.prev_log_id;
            return match target.append(heartbeat).await? {
                AppendEntriesResponse::Success => Ok(AppendEntriesResponse::PartialSuccess(arrived)),
                other => Ok(other),
            };
        }
    };
    let last = appending.last;
    *slot = None;
    match answer? {
        // More entries came to be since it was sent.
        AppendEntriesResponse::Success if last < wanted => Ok(AppendEntriesResponse::PartialSuccess(last)),
        other => Ok(other),
    }
}
