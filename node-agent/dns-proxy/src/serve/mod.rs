//! Moves queries and answers between pods and servers.

mod cluster;
mod counts;
mod slots;
mod sockets;
mod tcp;
mod udp;

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    Answered, Event, Gate, GateError, Outcome, Rules, Sight, Way, answered,
    message::{Code, Question},
    released,
};
pub use cluster::{Cluster, ClusterListeners};
pub use counts::{Counts, Fate};
use slots::Slots;
pub use sockets::Listeners;

/// As long as stub resolvers wait for one server (`resolv.conf`'s `timeout`).
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Writing to the kernel takes milliseconds: whatever takes this long has failed.
const GATE_TIME: Duration = Duration::from_secs(2);

/// Until the rules of a pod that is there have come.
const NEWS_TIME: Duration = Duration::from_millis(500);

/// The proxy of one node.
pub struct Proxy<G, S> {
    gate: G,
    sight: S,
    rules: watch::Receiver<Arc<Rules>>,
    slots: Slots,
}

impl<G: Gate, S: Sight> Proxy<G, S> {
    /// A proxy whose rules are whatever `rules` holds at the moment of a query.
    pub fn new(gate: G, sight: S, rules: watch::Receiver<Arc<Rules>>) -> Arc<Self> {
        Arc::new(Self { gate, sight, rules, slots: Slots::default() })
    }

    /// Serves until `stop` ends. What is under way then is given up: whoever asked asks again.
    ///
    /// # Errors
    /// A socket failed for good.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Listeners,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        for socket in listeners.udp {
            tasks.spawn(udp::serve(self.clone(), socket));
        }
        for listener in listeners.tcp {
            tasks.spawn(tcp::serve(self.clone(), listener));
        }
        tokio::select! {
            () = stop => Ok(()),
            Some(ended) = tasks.join_next() => ended.unwrap_or_else(|failed| Err(io::Error::other(failed))),
        }
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.borrow().clone()
    }

    /// The same, when a pod is known: one that has just come may be quicker than what is told of it.
    async fn rules_of(&self, pod: IpAddr) -> Arc<Rules> {
        let mut rules = self.rules.clone();
        // Not in time, or nobody tells any more: then there are none for it.
        let _ = timeout(NEWS_TIME, rules.wait_for(|rules| rules.pods.contains_key(&pod))).await;
        self.rules()
    }

    /// Asks a server through `exchange`, and holds the answer. The question's own number is in what comes back.
    async fn carry(
        &self,
        question: &Question,
        way: Way,
        exchange: impl Future<Output = io::Result<Reply>>,
    ) -> Vec<u8> {
        let (pod, server, _) = way;
        let event = |outcome| Event::of(way, &question.name, outcome);
        let failed = |error: &dyn std::fmt::Display| {
            tracing::debug!(%pod, %server, name = question.name, %error, "no answer");
            self.gate.note(event(Outcome::NoAnswer));
            question.says(Code::ServerFailure)
        };
        let reply = match timeout(ANSWER_TIME, exchange).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return failed(&error),
            Err(late) => return failed(&late),
        };
        let Some(seen) = &reply.seen else {
            self.gate.note(Event { rcode: rcode(&reply.bytes), ..event(Outcome::Answered) });
            return reply.bytes;
        };
        let late = GateError::Refused("the kernel was not written in time".to_owned());
        let admitted = timeout(GATE_TIME, self.gate.admit(seen)).await.unwrap_or(Err(late));
        if let Err(error) = &admitted {
            tracing::warn!(%pod, name = question.name, %error, "an answer is held back");
        }
        let addresses = reply.addresses();
        let (bytes, outcome) = released(&self.rules(), question, &self.sight, admitted, reply.bytes);
        self.gate.note(Event { addresses, rcode: rcode(&bytes), ..event(outcome) });
        bytes
    }
}

/// The response code of a message that was read before.
fn rcode(bytes: &[u8]) -> u8 {
    bytes.get(3).map_or(0, |flags| flags & 0xf)
}

/// An answer to the question that was asked, under the pod's number.
struct Reply {
    bytes: Vec<u8>,
    seen: Option<crate::Seen>,
}

impl Reply {
    /// `None`: it is no answer to this question, which was asked under the number `id`.
    fn of(question: &Question, pod: SocketAddr, id: u16, mut bytes: Vec<u8>) -> Option<Self> {
        let seen = match answered(question, pod.ip(), id, &bytes) {
            Answered::Unrelated(error) => {
                tracing::debug!(%pod, name = question.name, %error, "an answer is not taken");
                return None;
            }
            Answered::Pass => None,
            Answered::Hold(seen) => Some(seen),
        };
        crate::message::renumber(&mut bytes, question.id);
        Some(Self { bytes, seen })
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.seen.iter().flat_map(|seen| seen.addresses.iter().map(|(address, _)| *address)).collect()
    }
}
