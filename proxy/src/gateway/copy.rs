//! Bytes in both directions, each ended by itself.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::limits;

/// Copies until both sides have ended, or nothing has moved for `idle`. The end of one direction is passed on and the other
/// goes on (half-close). Returns the bytes of both directions.
///
/// # Errors
/// One side broke, or it was idle for too long.
pub async fn copy<A, B>(a: A, b: B, idle: Option<Duration>) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    let start = Instant::now();
    let moved = AtomicU64::new(0);
    let both = async {
        tokio::try_join!(one_way(a_read, b_write, start, &moved), one_way(b_read, a_write, start, &moved))
    };
    let Some(idle) = idle else { return both.await };
    tokio::select! {
        done = both => done,
        () = stalled(start, &moved, idle) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long")),
    }
}

async fn stalled(start: Instant, moved: &AtomicU64, idle: Duration) {
    loop {
        let until = start + Duration::from_millis(moved.load(Ordering::Relaxed)) + idle;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    start: Instant,
    moved: &AtomicU64,
) -> io::Result<u64> {
    let mut buffer = vec![0; limits::TCP_BUFFER];
    let mut total = 0;
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            // The other side may be gone already, which is no news.
            let _ = to.shutdown().await;
            return Ok(total);
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        to.flush().await?;
        total += length as u64;
        moved.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_one_direction_leaves_the_other_open() {
        let (mut client, a) = tokio::io::duplex(1024);
        let (b, mut server) = tokio::io::duplex(1024);
        let copying = tokio::spawn(copy(a, b, None));
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "ask");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!(answered, "answer");
        assert_eq!(copying.await.unwrap().unwrap(), (3, 6));
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_moves_is_given_up() {
        let (_client, a) = tokio::io::duplex(1024);
        let (b, _server) = tokio::io::duplex(1024);
        let error = copy(a, b, Some(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
