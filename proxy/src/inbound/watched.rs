//! A client's connection, watched: what its bytes frame, how long a head takes, and that the last answer arrives.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    frames::{Flow, Frames},
    framing::Framing,
};
use crate::{config::Times, limits};

/// To whoever takes too long for the first head.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\ncontent-length: 22\r\n\
    connection: close\r\n\r\nrequest header timeout";

/// The end of a head. The library judges a head that came in pieces only at its end, which a spoiled one may not have.
const END: &[u8] = b"\r\n\r\n";

/// See the module.
#[derive(Debug)]
pub(super) struct Watched<T> {
    io: T,
    framing: Option<Framing>,
    frames: Option<Frames>,
    begin: Instant,
    /// Requests that are being answered.
    active: Arc<AtomicUsize>,
    head_limit: Option<Duration>,
    /// The head that has begun, and its time.
    head: Option<(u64, Pin<Box<Sleep>>)>,
    /// How much of [`TOO_SLOW`] has been written.
    too_slow: Option<usize>,
    /// [`END`] is to be read next.
    end_next: bool,
    written: bool,
    ended: bool,
    linger: Option<Duration>,
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<T> Watched<T> {
    /// `http1`: whether HTTP/1.1 may be spoken.
    pub(super) fn new(io: T, http1: bool, times: &Times, active: Arc<AtomicUsize>) -> Self {
        Self {
            io,
            framing: http1.then(Framing::new),
            frames: Some(Frames::new()),
            begin: Instant::now(),
            active,
            head_limit: times.request_headers,
            head: None,
            too_slow: None,
            end_next: false,
            written: false,
            ended: false,
            linger: times.delayed_close,
            lingering: None,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Watched<T> {
    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        self.written = true;
        if let (Some(frames), Poll::Ready(Ok(length))) = (&mut self.frames, polled) {
            frames.wrote(*length);
        }
    }

    /// Whether the head that has begun takes too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(limit), Some(number)) = (self.head_limit, self.framing.as_ref().and_then(Framing::head))
        else {
            self.head = None;
            return Poll::Pending;
        };
        if self.head.as_ref().is_none_or(|(known, _)| *known != number) {
            self.head = Some((number, Box::pin(sleep(limit))));
        }
        let Some((_, time)) = &mut self.head else { return Poll::Pending };
        ready!(time.as_mut().poll(cx));
        if self.active.load(Ordering::Relaxed) == 0 {
            return Poll::Ready(());
        }
        // It is read ahead while an answer is under way: its time has not come.
        time.as_mut().reset(Instant::now() + limit);
        let _ = time.as_mut().poll(cx);
        Poll::Pending
    }

    /// Says that the head took too long, if nothing else was ever said here, and then that this is the end.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, mut from: usize) -> Poll<io::Result<()>> {
        while !self.written
            && let Some(rest) = TOO_SLOW.get(from..).filter(|rest| !rest.is_empty())
        {
            self.too_slow = Some(from);
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest)) {
                Ok(length) if length > 0 => from += length,
                Ok(_) | Err(_) => break,
            }
        }
        self.too_slow = Some(TOO_SLOW.len());
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(from) = self.too_slow {
            return self.poll_refuse(cx, from);
        }
        if self.end_next && buf.remaining() >= END.len() {
            self.end_next = false;
            buf.put_slice(END);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() && buf.filled().len() == before {
            self.ended = true;
        }
        let this = &mut *self;
        if let Some(frames) = &mut this.frames
            && let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty())
        {
            match frames.scan(new, this.begin.elapsed()) {
                Flow::Measured => {}
                Flow::Other => this.frames = None,
                Flow::Flood => {
                    return Poll::Ready(Err(io::Error::other("too many HTTP/2 frames that say nothing")));
                }
            }
        }
        if let Some(framing) = &mut self.framing
            && let Some(new) = buf.filled_mut().get_mut(before..)
        {
            framing.scan(new);
            if framing.is_off() {
                self.end_next = framing.has_spoiled();
                self.framing = None;
            }
        }
        if polled.is_pending() && self.poll_late(cx).is_ready() {
            return self.poll_refuse(cx, 0);
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends this direction, and reads on for a while: a connection that is closed with bytes unread is reset, and a reset may
    /// overtake the answer (RFC 9112 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            let Some(linger) = this.linger.filter(|_| !this.ended) else { return Poll::Ready(Ok(())) };
            this.lingering = Some((Box::pin(sleep(linger)), 0));
        }
        let Some((time, discarded)) = &mut this.lingering else { return Poll::Ready(Ok(())) };
        let mut space = [0; 4096];
        while *discarded < limits::DELAYED_CLOSE_BYTES {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => *discarded += buf.filled().len(),
                Poll::Ready(_) => break,
                Poll::Pending => return time.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn watched(head: Duration, close: Duration) -> (DuplexStream, Watched<DuplexStream>, Arc<AtomicUsize>) {
        let (client, server) = duplex(1 << 16);
        let active = Arc::new(AtomicUsize::new(0));
        let times = Times {
            request_headers: Some(head),
            request: None,
            delayed_close: Some(close),
            connection: None,
            stream: None,
            requests: None,
        };
        (client, Watched::new(server, true, &times, active.clone()), active)
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_answered_with_408() {
        let (mut client, mut server, _) = watched(Duration::from_millis(1), HOUR);
        client.write_all(b"GET / HTTP").await.unwrap();
        let mut all = vec![];
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"GET / HTTP");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("\r\n\r\nrequest header timeout"));
    }

    #[tokio::test]
    async fn silence_between_requests_and_heads_read_ahead_are_no_slow_heads() {
        let (mut client, mut server, active) = watched(Duration::ZERO, HOUR);
        let mut space = [0; 100];
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(server.read(&mut space).await.unwrap(), 18);
        assert!(poll!(Box::pin(server.read(&mut space))).is_pending());
        assert!(server.head.is_none(), "no time runs");
        active.store(1, Ordering::Relaxed);
        client.write_all(b"GET").await.unwrap();
        assert_eq!(server.read(&mut space).await.unwrap(), 3);
        assert!(poll!(Box::pin(server.read(&mut space))).is_pending());
        active.store(0, Ordering::Relaxed);
        assert_eq!(server.read(&mut space).await.unwrap(), 0, "now it is late");
    }

    #[tokio::test]
    async fn a_connection_is_read_from_for_a_while_after_its_end() {
        let (mut client, mut server, _) = watched(HOUR, HOUR);
        client.write_all(&[0; 5000]).await.unwrap();
        assert!(poll!(Box::pin(server.shutdown())).is_pending(), "the client has not closed");
        assert_eq!(server.lingering.as_ref().unwrap().1, 5000);
        drop(client);
        server.shutdown().await.unwrap();
        let (_client, mut server, _) = watched(HOUR, Duration::from_millis(1));
        server.shutdown().await.unwrap();
    }
}
