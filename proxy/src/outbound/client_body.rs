//! A client's body, of which a filter may have read a part.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// See the module.
#[derive(Debug)]
pub struct ClientBody {
    /// Read already, and not yet passed on.
    read: VecDeque<Frame<Bytes>>,
    bytes: usize,
    /// Nothing more comes behind what was read.
    ended: bool,
    incoming: Incoming,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing came for too long.
    #[error("nothing was received for too long")]
    Stalled,
    /// The client broke off.
    #[error(transparent)]
    Broken(hyper::Error),
}

impl From<Incoming> for ClientBody {
    fn from(incoming: Incoming) -> Self {
        Self { read: VecDeque::new(), bytes: 0, ended: false, incoming }
    }
}

impl ClientBody {
    /// Reads until there is no more, or there are more bytes than `limit`: then what was read may exceed it by what
    /// came in one piece. Nothing is lost: all of it is passed on later.
    ///
    /// Returns whether all of it is here, which is at most `limit`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&mut self, limit: usize, idle: Option<Duration>) -> Result<bool, ReadError> {
        while self.bytes <= limit {
            if self.ended || self.incoming.is_end_stream() {
                self.ended = true;
                return Ok(true);
            }
            let next = poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx));
            let frame = match idle {
                Some(idle) => tokio::time::timeout(idle, next).await.map_err(|_| ReadError::Stalled)?,
                None => next.await,
            };
            match frame {
                None => {
                    self.ended = true;
                    return Ok(true);
                }
                Some(frame) => {
                    let frame = frame.map_err(ReadError::Broken)?;
                    self.bytes += frame.data_ref().map_or(0, Bytes::len);
                    self.read.push_back(frame);
                }
            }
        }
        Ok(false)
    }

    /// What was read and not yet passed on, at most `limit` bytes of it.
    pub fn seen(&self, limit: usize) -> Bytes {
        let mut pieces = self.read.iter().filter_map(Frame::data_ref);
        if let (Some(only), None) = (pieces.next(), pieces.next()) {
            return only.slice(..only.len().min(limit));
        }
        let mut all = Vec::with_capacity(self.bytes.min(limit));
        for piece in self.read.iter().filter_map(Frame::data_ref) {
            let room = limit - all.len();
            all.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        all.into()
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(frame) = self.read.pop_front() {
            self.bytes -= frame.data_ref().map_or(0, Bytes::len);
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(ready!(Pin::new(&mut self.incoming).poll_frame(cx)))
    }

    /// Whether nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        self.read.is_empty() && (self.ended || self.incoming.is_end_stream())
    }

    /// Bytes that are still to come.
    pub fn size_hint(&self) -> SizeHint {
        let mut hint = self.incoming.size_hint();
        // Of a body with trailers the length is not told beforehand: HTTP/1.1 has either.
        if self.ended && self.read.iter().all(Frame::is_data) {
            return SizeHint::with_exact(self.bytes as u64);
        }
        if self.read.is_empty() {
            return hint;
        }
        let read = self.bytes as u64;
        match hint.upper() {
            // The upper bound first: it may not be below the lower one.
            Some(upper) => {
                hint.set_upper(upper.saturating_add(read));
                hint.set_lower(hint.lower().saturating_add(read));
                hint
            }
            None => hint,
        }
    }
}
