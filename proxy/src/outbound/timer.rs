//! Time limits of requests.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

/// Fires when nothing has moved for a while. Costs nothing while things move.
#[derive(Debug, Default)]
pub struct IdleTimer {
    timeout: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl IdleTimer {
    /// `None` never fires.
    pub fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, sleep: None, armed: false }
    }

    /// Something moved.
    pub fn moved(&mut self) {
        self.armed = false;
    }

    /// Nothing moves: waits for something to, or for the time to be over.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timeout) = self.timeout else { return Poll::Pending };
        let armed = std::mem::replace(&mut self.armed, true);
        match &mut self.sleep {
            None => self.sleep = Some(Box::pin(sleep(timeout))),
            Some(sleep) if !armed => sleep.as_mut().reset(Instant::now() + timeout),
            Some(_) => {}
        }
        self.sleep.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }
}

/// The limit of a whole request. It runs from the end of the request, as in Envoy: a slow upload is not the upstream's
/// fault.
#[derive(Debug)]
pub enum Deadline {
    /// There is none.
    Never,
    /// The request is still being sent; the sender fires, or is dropped, at its end.
    AfterRequest(oneshot::Receiver<()>, Duration),
    /// It runs.
    Running(Pin<Box<Sleep>>),
    /// Whichever comes first.
    Either(Box<(Deadline, Deadline)>),
}

impl Deadline {
    /// A limit that runs from now.
    pub fn from_now(limit: Option<Duration>) -> Self {
        limit.map_or(Self::Never, |limit| Self::Running(Box::pin(sleep(limit))))
    }

    /// A further limit.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (one, Self::Never) | (Self::Never, one) => one,
            both => Self::Either(Box::new(both)),
        }
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::AfterRequest(ended, limit) = &mut *self {
            let limit = *limit;
            match Pin::new(ended).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => *self = Self::from_now(Some(limit)),
            }
        }
        match &mut *self {
            Self::Running(sleep) => sleep.as_mut().poll(cx),
            Self::Either(both) => match Pin::new(&mut both.0).poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => Pin::new(&mut both.1).poll(cx),
            },
            Self::Never | Self::AfterRequest(..) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::poll;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_deadline_runs_from_the_end_of_the_request() {
        let (ended, receiver) = oneshot::channel();
        let mut deadline = Deadline::AfterRequest(receiver, SHORT);
        assert!(poll!(&mut deadline).is_pending());
        assert!(matches!(deadline, Deadline::AfterRequest(..)));
        let start = Instant::now();
        drop(ended);
        deadline.await;
        assert!(start.elapsed() >= SHORT);
        assert!(poll!(&mut Deadline::from_now(None)).is_pending());
    }

    #[tokio::test]
    async fn an_idle_timer_fires_only_when_nothing_moved_for_its_time() {
        let mut timer = IdleTimer::new(Some(SHORT));
        poll_fn(|cx| timer.poll_stalled(cx)).await;
        // It has fired; something moves; then it takes its whole time again.
        timer.moved();
        let start = Instant::now();
        assert!(poll!(poll_fn(|cx| timer.poll_stalled(cx))).is_pending());
        poll_fn(|cx| timer.poll_stalled(cx)).await;
        assert!(start.elapsed() >= SHORT);
    }
}
