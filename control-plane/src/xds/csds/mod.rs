//! CSDS: what each client was sent, has accepted or refused, in Envoy's own message.
//!
//! Nothing is kept for it but when what was sent: a question goes to the task of each stream that it concerns, which
//! answers from its session.
//!
//! * [`matcher`]: which clients a request is about. Pure.
//! * [`journal`]: when resources were sent and refused. Pure; the time is an argument.
//! * [`dump`]: session and journal as an `envoy.service.status.v3.ClientConfig`. Pure.
//! * [`service`]: the gRPC service, over all replicas.

pub mod dump;
pub mod journal;
pub mod matcher;
pub mod service;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, oneshot};
use xds_proto::envoy::service::status::v3::ClientConfig;

use matcher::Matchers;

/// What is asked of a stream.
#[derive(Debug)]
pub(super) struct Question {
    matchers: Arc<Matchers>,
    /// With the resources themselves.
    contents: bool,
    /// None: the client is not among those that were meant.
    answer: oneshot::Sender<Option<ClientConfig>>,
}

impl Question {
    /// Answers for a client, if it is meant.
    pub(super) fn answer(self, config: impl FnOnce(bool) -> ClientConfig, whose: dump::Whose<'_>) {
        let meant = self.matchers.matches(whose.node, whose.client);
        // Whoever asked may have given up.
        let _ = self.answer.send(meant.then(|| config(self.contents)));
    }
}

/// Every stream that can be asked.
#[derive(Debug, Default)]
pub struct Inspectors(Mutex<BTreeMap<u64, mpsc::Sender<Question>>>);

/// A stream that can be asked, until dropped.
#[derive(Debug)]
pub(super) struct Inspected<'a> {
    registry: &'a Inspectors,
    stream: u64,
    questions: mpsc::Receiver<Question>,
}

impl Inspected<'_> {
    /// The next question. Never ends.
    pub(super) async fn question(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            // The registry holds the other end for as long as this one is there.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Inspected<'_> {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.stream);
    }
}

impl Inspectors {
    /// A stream can be asked from now on.
    pub(super) fn register(&self, stream: u64) -> Inspected<'_> {
        let (sender, questions) = mpsc::channel(1);
        self.lock().insert(stream, sender);
        Inspected { registry: self, stream, questions }
    }

    /// Asks one stream after the other, in the order in which they were opened. None when all have been asked.
    pub(super) async fn next(
        &self,
        after: u64,
        matchers: &Arc<Matchers>,
        contents: bool,
    ) -> Option<(u64, Option<ClientConfig>)> {
        let (stream, sender) = {
            let streams = self.lock();
            let (stream, sender) = streams.range(after.saturating_add(1)..).next()?;
            (*stream, sender.clone())
        };
        let (answer, answered) = oneshot::channel();
        let question = Question { matchers: matchers.clone(), contents, answer };
        if sender.send(question).await.is_err() {
            return Some((stream, None));
        }
        // Not held while waiting: with it a stream that has ended would seem to be there still.
        drop(sender);
        Some((stream, answered.await.unwrap_or(None)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, mpsc::Sender<Question>>> {
        // Nothing under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
