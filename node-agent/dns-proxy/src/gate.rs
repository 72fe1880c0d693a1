//! What the proxy needs of the node around it.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::Transport;

/// Names become addresses in the kernel here.
pub trait Gate: Send + Sync + 'static {
    /// Returns once the kernel lets the pod to these addresses, as far as policies allow the name.
    ///
    /// # Errors
    /// It does not, or nobody is there who could see to it.
    fn admit(&self, seen: &Seen) -> impl Future<Output = Result<(), GateError>> + Send;

    /// Takes note of a query, for flow logs. Does not wait.
    fn note(&self, event: Event);
}

/// What the kernel knows now.
pub trait Sight: Send + Sync + 'static {
    /// The identity behind an address, as policies see it.
    fn identity(&self, address: IpAddr) -> u32;
    /// Whether there is an entry for just this address, so that no answer needs to be held for it.
    fn knows(&self, address: IpAddr) -> bool;
}

/// A pod was told where a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who asked.
    pub pod: IpAddr,
    /// Lower case, without the last dot.
    pub name: String,
    /// Where the name is, and for how long that holds.
    pub addresses: Vec<(IpAddr, Duration)>,
}

/// Why an answer is not let through as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Nobody writes to the kernel now: what it knows already goes on.
    #[error("the agent is away")]
    Away,
    /// No room, or the kernel refused.
    #[error("{0}")]
    Refused(String),
}

/// One query and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who asked.
    pub pod: SocketAddr,
    /// Who was asked.
    pub server: SocketAddr,
    /// How.
    pub transport: Transport,
    /// Lower case, without the last dot; empty if it could not be read.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was answered.
    pub addresses: Vec<IpAddr>,
    /// The response code of the answer (RFC 1035, 4.1.1).
    pub rcode: u8,
}

impl Event {
    /// A query to which the proxy answers itself.
    #[must_use]
    pub fn of((pod, server, transport): Way, name: &str, outcome: Outcome) -> Self {
        let rcode = match outcome {
            Outcome::Answered | Outcome::Shortened => 0,
            Outcome::Malformed => 1,
            Outcome::NoAnswer | Outcome::Held | Outcome::Crowded => 2,
            Outcome::Refused => 5,
        };
        Self { pod, server, transport, name: name.to_owned(), outcome, addresses: Vec::new(), rcode }
    }
}

/// Who asks whom, and how.
pub type Way = (SocketAddr, SocketAddr, Transport);

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, all of it.
    Answered,
    /// Answered without addresses that the kernel does not let the pod to.
    Shortened,
    /// No policy lets the pod ask for it.
    Refused,
    /// It could not be read.
    Malformed,
    /// The server did not answer in time, or with something else.
    NoAnswer,
    /// The answer could not be let through.
    Held,
    /// Too many queries are under way.
    Crowded,
}
