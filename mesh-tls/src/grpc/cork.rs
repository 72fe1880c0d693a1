//! Gathers what HTTP/2 writes frame by frame. It flushes after each frame of some size, and with TLS below every flush is
//! a record and a system call: for a change that thousands of streams are told of, more than all the rest.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered: a TLS record.
const RECORD: usize = 16 << 10;
/// What an idle connection may keep of its buffer.
const KEPT: usize = 1 << 10;

/// A stream that puts off a flush until no more is written.
#[derive(Debug)]
pub(super) struct Corked<S> {
    inner: S,
    gathered: Vec<u8>,
    /// Of what is gathered, so much is written.
    written: usize,
    /// There is more since the flush before.
    fresh: bool,
}

impl<S> Corked<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, gathered: Vec::new(), written: 0, fresh: false }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let left = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.written = 0;
        self.gathered.clear();
        self.gathered.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= RECORD {
            ready!(self.poll_drain(cx))?;
        }
        if self.gathered.is_empty() && buf.len() >= RECORD {
            return Pin::new(&mut self.inner).poll_write(cx, buf);
        }
        let taken = buf.len().min(RECORD - self.gathered.len());
        self.gathered.extend_from_slice(&buf[..taken]);
        self.fresh = true;
        Poll::Ready(Ok(taken))
    }

    /// Puts it off if something was written since the last time. Whoever writes frame after frame flushes once more at
    /// their end; whoever does not is asked to by being woken.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.fresh) {
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts the writes that reach it.
    struct Counting(tokio::io::DuplexStream, usize);

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    fn corked(room: usize) -> (Corked<Counting>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        (Corked::new(Counting(near, 0)), far)
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_leave_together() {
        let (mut corked, mut far) = corked(1 << 20);
        for _ in 0..10 {
            corked.write_all(&[7; 1_500]).await.unwrap();
            corked.flush().await.unwrap();
        }
        assert_eq!(corked.inner.1, 0, "put off");
        corked.flush().await.unwrap();
        assert_eq!(corked.inner.1, 1);
        let mut read = vec![0; 15_000];
        far.read_exact(&mut read).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
        assert!(corked.gathered.capacity() <= KEPT, "an idle connection keeps little");
    }

    #[tokio::test]
    async fn everything_arrives_in_order_however_little_room_there_is() {
        let (mut corked, mut far) = corked(100);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = async move {
            for piece in sent.chunks(40_000).flat_map(|piece| [&piece[..10], &piece[10..]]) {
                corked.write_all(piece).await.unwrap();
                corked.flush().await.unwrap();
            }
            corked.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let ((), count) = tokio::join!(writing, far.read_to_end(&mut read));
        assert_eq!(count.unwrap(), expected.len());
        assert!(read == expected);
    }

    #[tokio::test]
    async fn whoever_flushes_once_is_woken_to_do_it_again() {
        let (mut corked, mut far) = corked(100);
        corked.write_all(b"one").await.unwrap();
        // As a connection's task does: it flushes whenever it is polled.
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            let flushed = Pin::new(&mut corked).poll_flush(cx);
            if polls == 1 { Poll::Pending } else { flushed }
        })
        .await
        .unwrap();
        let mut read = [0; 3];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!((&read, polls), (b"one", 2));
    }
}
