//! Connections to the mesh door, counted: those with a certificate, and the few that may be without one.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt};
use mesh_tls::grpc::{PeerInfo, TlsIncoming};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::gate::{ConnectionSlot, Gate};

/// How long somebody without a certificate may stay. Whoever has shown a token connects anew, with a certificate.
pub const NEWCOMER_TIME: Duration = Duration::from_secs(120);
/// Connections that wait for a door to take them.
const WAITING: usize = 16;

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct Counted {
    connection: TlsIncoming,
    ends: Option<Pin<Box<Sleep>>>,
    _slot: ConnectionSlot,
}

/// Connections of one sort.
pub type Connections = ReceiverStream<io::Result<Counted>>;

/// Those with a certificate, and those without. What is beyond a limit is closed. Ends when both are dropped.
pub fn divide(
    gate: Arc<Gate>,
    incoming: impl Stream<Item = io::Result<TlsIncoming>> + Send + 'static,
) -> (Connections, Connections) {
    let (known, of_known) = mpsc::channel(WAITING);
    let (newcomers, of_newcomers) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        let gone = async { tokio::join!(known.closed(), newcomers.closed()) };
        let mut gone = std::pin::pin!(gone);
        loop {
            let next = tokio::select! {
                next = incoming.next() => next,
                _ = &mut gone => return,
            };
            let connection = match next {
                Some(Ok(connection)) => connection,
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    continue;
                }
                None => return,
            };
            let peer = connection.peer();
            let to = if peer.spiffe_id.is_some() { &known } else { &newcomers };
            match gate.connection(peer) {
                // One that can't be handed on is closed, as the door that it came to is.
                Ok(slot) => drop(to.send(Ok(Counted::new(connection, slot))).await),
                Err(reached) => tracing::debug!(%reached, "closed a connection"),
            }
        }
    });
    (ReceiverStream::new(of_known), ReceiverStream::new(of_newcomers))
}

/// Who shares a limit: an IPv4 address, or the 2^64 addresses that one machine of IPv6 has.
pub(super) fn neighbours(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        },
    }
}

impl Counted {
    fn new(connection: TlsIncoming, slot: ConnectionSlot) -> Self {
        let is_newcomer = connection.peer().spiffe_id.is_none();
        let ends = is_newcomer.then(|| Box::pin(sleep(NEWCOMER_TIME)));
        Self { connection, ends, _slot: slot }
    }
}

impl Connected for Counted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.connection.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            self.ends = None;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_ipv6_has_one_share_however_many_addresses_it_takes() {
        let of = |text: &str| neighbours(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
