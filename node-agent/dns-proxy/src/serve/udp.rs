//! Queries in datagrams.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::UdpSocket;

use super::{Proxy, Reply, sockets};
use crate::{
    Ask, Event, Gate, Outcome, Rules, Sight, Transport, Way, ask,
    message::{self, Code, Question},
};

/// Datagrams of others that are read while an answer is waited for.
const STRANGERS: usize = 16;
/// The longest datagram.
const MAX_ANSWER: usize = 65_535;

pub(super) async fn serve<G: Gate, S: Sight>(proxy: Arc<Proxy<G, S>>, socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; message::MAX_QUERY];
    loop {
        let Some((length, pod, server)) = sockets::receive(&socket, &mut buffer).await? else { continue };
        // (More than the buffer holds says its whole length, and is no query.)
        let Some(query) = buffer.get(..length) else { continue };
        let way = (pod, server, Transport::Udp);
        let rules = proxy.rules();
        if rules.pods.contains_key(&pod.ip()) {
            decide(&proxy, &rules, query, way);
        } else {
            tokio::spawn(late(proxy.clone(), query.to_vec(), way));
        }
    }
}

/// A query of a pod that is not known yet.
async fn late<G: Gate, S: Sight>(proxy: Arc<Proxy<G, S>>, query: Vec<u8>, way: Way) {
    let (pod, ..) = way;
    let slot = proxy.slots.take(pod.ip());
    if slot.is_some() {
        let rules = proxy.rules_of(pod.ip()).await;
        drop(slot);
        decide(&proxy, &rules, &query, way);
    } else {
        proxy.gate.note(Event::of(way, "", Outcome::Crowded));
    }
}

fn decide<G: Gate, S: Sight>(proxy: &Arc<Proxy<G, S>>, rules: &Rules, query: &[u8], way: Way) {
    let (pod, server, _) = way;
    match ask(rules, &proxy.sight, way, query) {
        Ask::Answer(answer, event) => {
            proxy.gate.note(event);
            if let Some(answer) = answer {
                send(server, pod, &answer);
            }
        }
        Ask::Forward(question) => {
            tokio::spawn(forward(proxy.clone(), question, query.to_vec(), way));
        }
    }
}

async fn forward<G: Gate, S: Sight>(proxy: Arc<Proxy<G, S>>, question: Question, query: Vec<u8>, way: Way) {
    let (pod, server, _) = way;
    let Some(_slot) = proxy.slots.take(pod.ip()) else {
        proxy.gate.note(Event::of(way, &question.name, Outcome::Crowded));
        return send(server, pod, &question.says(Code::ServerFailure));
    };
    let answer = proxy.carry(&question, way, exchange(&question, query, pod, server)).await;
    send(server, pod, &answer);
}

/// Asks in the pod's name, from a port and under a number that nobody can guess.
async fn exchange(
    question: &Question,
    mut query: Vec<u8>,
    pod: SocketAddr,
    server: SocketAddr,
) -> io::Result<Reply> {
    let socket = sockets::datagrams_as(pod.ip(), server).await?;
    let id = rand::random();
    message::renumber(&mut query, id);
    socket.send(&query).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    for _ in 0..STRANGERS {
        let length = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if let Some(reply) = Reply::of(question, pod, id, bytes) {
            return Ok(reply);
        }
    }
    Err(io::Error::other("many answers, none of them to this question"))
}

fn send(server: SocketAddr, pod: SocketAddr, bytes: &[u8]) {
    if let Err(error) = sockets::answer_as(server, pod, bytes) {
        tracing::warn!(%pod, %server, %error, "an answer could not be sent");
    }
}
