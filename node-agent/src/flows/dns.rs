//! Queries to DNS as flows. PURE.

use std::net::{IpAddr, SocketAddr};

use ebpf_shared::{Reason, Verdict};
use xds_proto::isthmus::{
    bootstrap::v1::{Flow, FlowDns},
    local::v1::{DnsNote, dns_note::Outcome},
};

use super::Names;

/// Who asked and who was asked, as policy sees them, and the rule that let the query through or did not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Parties {
    pub pod: u32,
    pub server: u32,
    pub policy: String,
}

/// A note of the DNS proxy; `None`: it can't be read.
pub fn asked(note: &DnsNote) -> Option<(SocketAddr, SocketAddr)> {
    Some((note.pod.parse().ok()?, note.server.parse().ok()?))
}

impl Names {
    /// A query with what became of it. One that was answered is told by its answer, on its way to the pod.
    pub fn dns(&self, (pod, server): (SocketAddr, SocketAddr), note: DnsNote, parties: Parties) -> Flow {
        let outcome = note.outcome();
        let dropped = match outcome {
            Outcome::Answered | Outcome::Shortened | Outcome::NoAnswer => None,
            Outcome::Refused => Some(Reason::PolicyDenied.name()),
            Outcome::Malformed | Outcome::Unknown => Some(Reason::Malformed.name()),
            Outcome::Held => Some("DNS_HELD"),
            Outcome::Crowded => Some("DNS_CROWDED"),
        };
        let is_reply = matches!(outcome, Outcome::Answered | Outcome::Shortened);
        let peer = |address: IpAddr, identity| Some(self.peer(address, identity));
        let (pod_peer, server_peer) = (peer(pod.ip(), parties.pod), peer(server.ip(), parties.server));
        let (source, destination) = if is_reply { (server_peer, pod_peer) } else { (pod_peer, server_peer) };
        let (source_port, destination_port) =
            if is_reply { (server.port(), pod.port()) } else { (pod.port(), server.port()) };
        let verdict = if dropped.is_some() { Verdict::Dropped } else { Verdict::Forwarded };
        Flow {
            time_unix_nanos: note.time_ns,
            node: self.node.clone(),
            verdict: verdict.name().to_owned(),
            drop_reason: dropped.unwrap_or_default().to_owned(),
            policy: parties.policy,
            direction: if is_reply { "INGRESS" } else { "EGRESS" }.to_owned(),
            source,
            destination,
            protocol: if note.tcp { "TCP" } else { "UDP" }.to_owned(),
            source_port: source_port.into(),
            destination_port: destination_port.into(),
            is_reply,
            dns: Some(FlowDns { query: note.name, rcode: note.rcode, addresses: note.addresses }),
            ..Flow::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(outcome: Outcome) -> Flow {
        let note = DnsNote {
            pod: "10.1.1.2:40000".into(),
            server: "[fd00::53]:53".into(),
            name: "www.example.com".into(),
            outcome: outcome.into(),
            addresses: vec!["198.51.100.1".into()],
            time_ns: 7,
            rcode: 3,
            tcp: true,
        };
        let parties =
            Parties { pod: 300, server: 301, policy: "ciliumnetworkpolicy/shop/names#egress[0]".into() };
        let ends = asked(&note).unwrap();
        Names::default().dns(ends, note, parties)
    }

    #[test]
    fn a_query_that_is_refused_names_the_policy_and_an_answer_comes_from_the_server() {
        let flow = told(Outcome::Refused);
        assert_eq!((flow.verdict.as_str(), flow.drop_reason.as_str()), ("DROPPED", "POLICY_DENIED"));
        assert_eq!((flow.direction.as_str(), flow.destination_port, flow.is_reply), ("EGRESS", 53, false));
        assert_eq!(flow.policy, "ciliumnetworkpolicy/shop/names#egress[0]");
        assert_eq!(flow.dns.unwrap().query, "www.example.com");
        let flow = told(Outcome::Answered);
        assert_eq!((flow.verdict.as_str(), flow.direction.as_str()), ("FORWARDED", "INGRESS"));
        assert_eq!(flow.source.unwrap().address, "fd00::53");
        assert_eq!((flow.source_port, flow.is_reply, flow.protocol.as_str()), (53, true, "TCP"));
        assert_eq!(flow.dns.unwrap().rcode, 3);
        assert_eq!(told(Outcome::Held).drop_reason, "DNS_HELD");
    }
}
