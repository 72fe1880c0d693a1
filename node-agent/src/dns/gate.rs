//! The agent, as the proxy needs it.

use std::time::{SystemTime, UNIX_EPOCH};

use dns_proxy::{Event, Gate, GateError, Outcome, Seen, Transport};
use tokio::sync::{mpsc, watch};
use tonic::{Code, transport::Channel};
use xds_proto::isthmus::local::v1::{DnsAddress, DnsAdmitRequest, DnsNote, dns_client::DnsClient, dns_note};

pub(super) struct AgentGate {
    /// `None`: the agent is away.
    agent: watch::Receiver<Option<Channel>>,
    notes: mpsc::Sender<DnsNote>,
}

impl AgentGate {
    pub(super) fn new(agent: watch::Receiver<Option<Channel>>, notes: mpsc::Sender<DnsNote>) -> Self {
        Self { agent, notes }
    }
}

impl Gate for AgentGate {
    async fn admit(&self, seen: &Seen) -> Result<(), GateError> {
        let channel = self.agent.borrow().clone().ok_or(GateError::Away)?;
        let addresses = seen.addresses.iter().map(|(address, holds)| DnsAddress {
            address: address.to_string(),
            ttl_s: u32::try_from(holds.as_secs()).unwrap_or(u32::MAX),
        });
        let request = DnsAdmitRequest {
            pod: seen.pod.to_string(),
            name: seen.name.clone(),
            addresses: addresses.collect(),
        };
        match DnsClient::new(channel).admit(request).await {
            Ok(_) => Ok(()),
            // What the transport says of itself: the agent went away under the call.
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                Err(GateError::Away)
            }
            Err(status) => Err(GateError::Refused(status.message().to_owned())),
        }
    }

    fn note(&self, event: Event) {
        let note = DnsNote {
            pod: event.pod.to_string(),
            server: event.server.to_string(),
            name: event.name,
            outcome: outcome(event.outcome).into(),
            addresses: event.addresses.iter().map(ToString::to_string).collect(),
            time_ns: unix_ns(),
            rcode: event.rcode.into(),
            tcp: event.transport == Transport::Tcp,
        };
        // Full: the agent is away or slow, and a log has no say in what goes on.
        let _ = self.notes.try_send(note);
    }
}

fn outcome(outcome: Outcome) -> dns_note::Outcome {
    match outcome {
        Outcome::Answered => dns_note::Outcome::Answered,
        Outcome::Shortened => dns_note::Outcome::Shortened,
        Outcome::Refused => dns_note::Outcome::Refused,
        Outcome::Malformed => dns_note::Outcome::Malformed,
        Outcome::NoAnswer => dns_note::Outcome::NoAnswer,
        Outcome::Held => dns_note::Outcome::Held,
        Outcome::Crowded => dns_note::Outcome::Crowded,
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
