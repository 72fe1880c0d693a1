//! Streams of answers whose reader may not read. Nothing is kept for such a one for long; why its stream has ended is
//! told to it when it reads again.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{Stream, StreamExt};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long an answer may find no room before its stream is ended.
pub const UNREAD: Duration = Duration::from_secs(30);

/// What a client reads.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// Where answers are put. The stream ends when the last one of an outlet's clones is dropped.
#[derive(Debug)]
pub struct Outlet<T> {
    answers: mpsc::Sender<T>,
    end: Arc<End>,
}

#[derive(Debug)]
struct End {
    /// See [`UNREAD`].
    unread: Duration,
    why: OnceLock<Status>,
    over: CancellationToken,
}

/// Nobody is there to be answered, or is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over;

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self { answers: self.answers.clone(), end: self.end.clone() }
    }
}

impl<T: Send + 'static> Outlet<T> {
    /// With room for so many answers. Ends when `stop` is cancelled.
    pub fn new(room: usize, stop: &CancellationToken) -> (Self, Answers<T>) {
        Self::patient(room, stop, UNREAD)
    }

    fn patient(room: usize, stop: &CancellationToken, unread: Duration) -> (Self, Answers<T>) {
        let (answers, receiver) = mpsc::channel(room);
        let end = Arc::new(End { unread, why: OnceLock::new(), over: stop.child_token() });
        let told = end.clone();
        let last = futures::stream::once(async move { told.why.get().cloned() })
            .filter_map(|why| std::future::ready(why.map(Err)));
        (Self { answers, end }, Box::pin(ReceiverStream::new(receiver).map(Ok).chain(last)))
    }

    /// Puts an answer, once there is room.
    ///
    /// # Errors
    /// The stream is over: its reader has gone, the replica stops, or nothing was read for [`UNREAD`].
    pub async fn send(&self, answer: T) -> Result<(), Over> {
        tokio::select! {
            biased;
            sent = self.answers.send(answer) => return sent.map_err(|_| Over),
            () = self.end.over.cancelled() => self.end(stopping()),
            () = sleep(self.end.unread) => {
                let unread = self.end.unread;
                self.end(Status::deadline_exceeded(format!("nothing was read for {unread:?}: ask again")));
            }
        }
        Err(Over)
    }

    /// Puts an answer if there is room now.
    ///
    /// # Errors
    /// There is none, or nobody reads any more.
    pub fn try_send(&self, answer: T) -> Result<(), TrySendError<T>> {
        self.answers.try_send(answer)
    }

    /// Ends the stream, after what was put so far. Only the first reason is told.
    pub fn end(&self, why: Status) {
        // It is an error to have been told of another one before.
        let _ = self.end.why.set(why);
        self.end.over.cancel();
    }

    /// Resolves when the stream is over.
    pub async fn over(&self) {
        tokio::select! {
            () = self.answers.closed() => {}
            () = self.end.over.cancelled() => self.end(stopping()),
        }
    }
}

pub(crate) fn stopping() -> Status {
    Status::unavailable("this replica is shutting down: ask another one")
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_given_up_and_hears_of_it_later() {
        let unread = Duration::from_millis(20);
        let (outlet, mut answers) = Outlet::patient(1, &CancellationToken::new(), unread);
        let other = outlet.clone();
        outlet.send(1).await.unwrap();
        let started = Instant::now();
        assert_eq!(outlet.send(2).await, Err(Over));
        assert!(started.elapsed() >= unread);
        other.over().await;
        drop((outlet, other));
        assert_eq!(answers.next().await.unwrap().unwrap(), 1, "what had room is not lost");
        let status = answers.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn a_replica_that_stops_waits_for_no_reader() {
        let stop = CancellationToken::new();
        let (outlet, mut answers) = Outlet::new(1, &stop);
        outlet.send(1).await.unwrap();
        let started = Instant::now();
        let (sent, ()) = tokio::join!(outlet.send(2), async { stop.cancel() });
        assert!(sent == Err(Over) && started.elapsed() < UNREAD);
        drop(outlet);
        assert!(answers.next().await.unwrap().is_ok());
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn a_stream_that_was_told_everything_ends_without_a_word_also_when_the_replica_stops() {
        let stop = CancellationToken::new();
        let (outlet, answers) = Outlet::new(1, &stop);
        outlet.send(1).await.unwrap();
        drop(outlet);
        stop.cancel();
        assert_eq!(answers.map(Result::unwrap).collect::<Vec<_>>().await, [1]);
        let (outlet, answers) = Outlet::new(1, &stop);
        drop(answers);
        assert_eq!(outlet.send(2).await, Err(Over));
        outlet.over().await;
    }
}
