//! The body of an answer on its way to the client.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    outbound::{BoxError, Deadline, IdleTimer, Lease},
    telemetry::AccessRecord,
};

/// An answer's body.
#[derive(Debug)]
pub enum ResponseBody {
    /// There is none.
    Empty,
    /// This proxy's own words.
    Text(Option<Bytes>),
    /// An endpoint's.
    Upstream(Box<UpstreamAnswer>),
    /// Any of them, with a line in the log at the end.
    Logged(Box<ResponseBody>, Box<AccessRecord>),
}

/// What must live as long as an answer is on its way.
#[derive(Debug)]
pub struct UpstreamAnswer {
    incoming: Incoming,
    /// Given back at the end. If this is dropped before, the connection is closed or the stream reset.
    lease: Option<Lease>,
    deadline: Deadline,
    idle: IdleTimer,
    _guards: Guards,
}

/// Counts that go down when the answer is through.
pub(super) type Guards = Box<dyn std::fmt::Debug + Send>;

#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("upstream request timeout")]
    Timeout,
    #[error("nothing was received for too long")]
    Stalled,
}

impl ResponseBody {
    /// This proxy's own words.
    pub fn text(text: String) -> Self {
        Self::Text(Some(text.into()))
    }

    pub(super) fn upstream(
        incoming: Incoming,
        lease: Lease,
        deadline: Deadline,
        idle: IdleTimer,
        guards: Guards,
    ) -> Self {
        if incoming.is_end_stream() {
            lease.finish();
            return Self::Empty;
        }
        Self::Upstream(Box::new(UpstreamAnswer {
            incoming,
            lease: Some(lease),
            deadline,
            idle,
            _guards: guards,
        }))
    }
}

impl UpstreamAnswer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.moved();
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending if Pin::new(&mut self.deadline).poll(cx).is_ready() => {
                Poll::Ready(Some(Err(AnswerError::Timeout.into())))
            }
            Poll::Pending => match self.idle.poll_stalled(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(AnswerError::Stalled.into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(answer) => answer.poll_next(cx),
            Self::Logged(body, record) => {
                let polled = Pin::new(&mut **body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_none(),
            Self::Upstream(answer) => answer.incoming.is_end_stream(),
            Self::Logged(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Self::Upstream(answer) => answer.incoming.size_hint(),
            Self::Logged(body, _) => body.size_hint(),
        }
    }
}
