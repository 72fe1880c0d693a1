//! Queries over connections: long answers, and whoever prefers them (RFC 7766).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{Proxy, Reply, sockets};
use crate::{
    Ask, Event, Gate, Outcome, Sight, Transport, Way, ask,
    message::{self, MAX_QUERY, Question},
};

/// A pod that sends nothing for so long is left (RFC 7766, 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Until a server accepts.
const CONNECT: Duration = Duration::from_secs(5);
/// Between attempts to accept while the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve<G: Gate, S: Sight>(
    proxy: Arc<Proxy<G, S>>,
    listener: TcpListener,
) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, pod)) => {
                tokio::spawn(connection(proxy.clone(), stream, pod));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection<G: Gate, S: Sight>(proxy: Arc<Proxy<G, S>>, mut stream: TcpStream, pod: SocketAddr) {
    // The address that the pod connected to.
    let Ok(server) = stream.local_addr() else { return };
    let way = (pod, server, Transport::Tcp);
    let Some(_slot) = proxy.slots.take(pod.ip()) else {
        proxy.gate.note(Event::of(way, "", Outcome::Crowded));
        return;
    };
    if let Err(error) = converse(&proxy, &mut stream, way).await {
        tracing::debug!(%pod, %server, %error, "a connection ended");
    }
}

/// One question after the other, over one connection to the server.
async fn converse<G: Gate, S: Sight>(
    proxy: &Proxy<G, S>,
    stream: &mut TcpStream,
    way: Way,
) -> io::Result<()> {
    let (pod, server, _) = way;
    let mut upstream = None;
    while let Some(query) = timeout(IDLE, read(stream, MAX_QUERY)).await?? {
        let rules = proxy.rules_of(pod.ip()).await;
        let answer = match ask(&rules, &proxy.sight, way, &query) {
            Ask::Answer(answer, event) => {
                proxy.gate.note(event);
                answer
            }
            Ask::Forward(question) => {
                let exchange = exchange(&mut upstream, &question, query, pod, server);
                Some(proxy.carry(&question, way, exchange).await)
            }
        };
        let Some(framed) = answer.as_deref().and_then(message::framed) else { return Ok(()) };
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

async fn exchange(
    upstream: &mut Option<TcpStream>,
    question: &Question,
    mut query: Vec<u8>,
    pod: SocketAddr,
    server: SocketAddr,
) -> io::Result<Reply> {
    // Taken, so that a connection on which anything failed is not used again.
    let mut stream = match upstream.take() {
        Some(stream) => stream,
        None => timeout(CONNECT, sockets::connection_as(pod.ip(), server)).await??,
    };
    let id = rand::random();
    message::renumber(&mut query, id);
    let framed = message::framed(&query).ok_or(io::ErrorKind::InvalidData)?;
    stream.write_all(&framed).await?;
    let bytes = read(&mut stream, usize::from(u16::MAX)).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let reply = Reply::of(question, pod, id, bytes)
        .ok_or_else(|| io::Error::other("the server answered another question"))?;
    *upstream = Some(stream);
    Ok(reply)
}

/// A message with its length before it; `None`: the other side is done.
pub(super) async fn read(stream: &mut TcpStream, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > limit {
        let reason = format!("a message of {length} bytes; at most {limit} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
