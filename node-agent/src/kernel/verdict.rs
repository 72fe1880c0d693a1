//! The verdict without a kernel: the shared lines over plain collections. For tests and for explaining.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ebpf_shared::decide::{Message, Scene, of_no_flow};
use ebpf_shared::packet::icmp;
use ebpf_shared::{
    Addr, ConnEntry, ConnKey, Conntrack, Decision, Direction, Endpoint, Kind, Packet, PeerKey, PolicyMaps,
    Proxies, Reason, RuleKey, RuleValue, Ruling, Sides, decide,
};
use ipnet::IpNet;

use super::rules::ClassEntry;
use super::ruleset::{RuleSet, RuleSets};

/// Everything that the verdict reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub classes: BTreeMap<u32, ClassEntry>,
    pub rulesets: BTreeMap<u32, Arc<RuleSet>>,
    pub identities: BTreeMap<IpNet, u32>,
    /// For flows that are there already.
    pub lingering: BTreeMap<IpAddr, u32>,
    /// Raised by the caller with each change: all flows are then judged again.
    pub epoch: u64,
}

impl Policy {
    /// Puts a class in place, or replaces it, with the rulesets that it refers to.
    pub fn put_class(&mut self, number: u32, entry: &ClassEntry, sets: &RuleSets) {
        self.rulesets.extend(entry.rulesets().filter_map(|by| Some((by.set, sets.get(by)?.clone()))));
        self.classes.insert(number, entry.clone());
    }
}

impl PolicyMaps for Policy {
    fn stamp(&self, _class: u32, _peer: &Addr) -> u64 {
        self.epoch
    }

    fn unnamed(&self, key: &PeerKey) -> Option<Sides> {
        self.classes.get(&key.class).map(|entry| *entry.own.of(key.identity))
    }

    fn peer(&self, key: &PeerKey) -> Option<Sides> {
        self.classes.get(&key.class)?.peers.get(&key.identity).copied()
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        let set = self.rulesets.get(&key.ruleset)?;
        set.find(key.protocol, u16::from_be_bytes(key.port))
    }

    fn identity(&self, addr: &Addr) -> u32 {
        let addr = IpAddr::from(*addr);
        let all = IpNet::from(addr).max_prefix_len();
        let narrowest = (0..=all).rev().find_map(|length| {
            let net = IpNet::new(addr, length).ok()?.trunc();
            self.identities.get(&net).copied()
        });
        narrowest.unwrap_or(ebpf_shared::identity::ANY)
    }

    fn lingering(&self, addr: &Addr) -> u32 {
        self.lingering.get(&IpAddr::from(*addr)).copied().unwrap_or(ebpf_shared::identity::ANY)
    }
}

/// The connections, without a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections(pub BTreeMap<ConnKey, ConnEntry>);

impl Conntrack for Connections {
    fn get(&mut self, key: &ConnKey) -> Option<&mut ConnEntry> {
        self.0.get_mut(key)
    }

    fn insert(&mut self, key: &ConnKey, entry: &ConnEntry) -> bool {
        self.0.insert(*key, *entry);
        true
    }

    fn remove(&mut self, key: &ConnKey) {
        self.0.remove(key);
    }
}

/// The sockets of proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Slots whose proxies listen for everything.
    pub alive: BTreeSet<u16>,
    /// Answers that proxies wait for: from where, and to whom.
    pub awaited: BTreeSet<((Addr, u16), (Addr, u16))>,
}

impl Proxies for Sockets {
    fn take(&mut self, packet: &Packet, slot: u16, is_reply: bool) -> bool {
        if is_reply { self.take_answer(packet) } else { self.alive.contains(&slot) }
    }

    fn take_answer(&mut self, packet: &Packet) -> bool {
        self.awaited.contains(&((packet.src, packet.src_port), (packet.dst, packet.dst_port)))
    }
}

/// A node's pods, policy and connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emulation {
    pub policy: Policy,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub connections: Connections,
    pub proxies: Sockets,
}

impl Emulation {
    /// Decides on a packet at the door of a pod, `now` being nanoseconds of a monotonic clock.
    pub fn decide(&mut self, ifindex: u32, direction: Direction, packet: &Packet, now: u64) -> Decision {
        self.decide_of(ifindex, direction, packet, now, false)
    }

    /// The same of a packet that answers or tells of a flow, being this ICMP message.
    pub fn decide_message(
        &mut self,
        ifindex: u32,
        direction: Direction,
        packet: &Packet,
        message: &Message,
        now: u64,
    ) -> Decision {
        let decision = self.weigh(ifindex, direction, packet, now, false);
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return decision };
        let scene = Scene { ifindex, endpoint, direction, now, from_proxy: false, is_piece: false };
        of_no_flow(&self.policy, &scene, message, decision)
    }

    /// The same of a packet that a proxy may have sent.
    pub fn decide_of(
        &mut self,
        ifindex: u32,
        direction: Direction,
        packet: &Packet,
        now: u64,
        from_proxy: bool,
    ) -> Decision {
        if !matches!(packet.kind, Kind::EchoReply) {
            return self.weigh(ifindex, direction, packet, now, from_proxy);
        }
        let peer = match direction {
            Direction::Ingress => packet.src,
            Direction::Egress => packet.dst,
        };
        let message = Message { peer, icmp: icmp::answer_to(packet.src_port), is_whole: 1 };
        self.decide_message(ifindex, direction, packet, &message, now)
    }

    fn weigh(
        &mut self,
        ifindex: u32,
        direction: Direction,
        packet: &Packet,
        now: u64,
        from_proxy: bool,
    ) -> Decision {
        let refuse = |reason| Decision { ruling: Ruling::drop(reason, 0), is_reply: false, is_news: true };
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return refuse(Reason::UnknownEndpoint) };
        // What an error quotes went the other way.
        let is_error = matches!(packet.kind, Kind::Error);
        let (own, reason) = match direction {
            Direction::Egress => (if is_error { &packet.dst } else { &packet.src }, Reason::SpoofedSource),
            Direction::Ingress => {
                (if is_error { &packet.src } else { &packet.dst }, Reason::WrongDestination)
            }
        };
        if !endpoint.owns(own) {
            return refuse(reason);
        }
        let scene = Scene { ifindex, endpoint, direction, now, from_proxy, is_piece: false };
        decide(&self.policy, &mut self.connections, &mut self.proxies, &scene, packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rules::{DefaultDeny, Defaults, Rule, compile};
    use ebpf_shared::Ip4;
    use ebpf_shared::packet::{protocol, tcp};

    const SECOND: u64 = 1_000_000_000;
    const POD: Addr = Addr::v4(Ip4::from_be(1));
    const PEER: Addr = Addr::v4(Ip4::from_be(2));

    /// A pod that may be asked at port 53 and nothing else.
    fn node() -> Emulation {
        let mut node = Emulation::default();
        node.endpoints.insert(9, Endpoint { identity: 300, class: 1, v4: POD, ..Endpoint::default() });
        isolate(&mut node, true);
        node
    }

    fn isolate(node: &mut Emulation, may_be_asked: bool) {
        let rule = Rule {
            direction: Direction::Ingress,
            allow: true,
            audit: false,
            redirect: None,
            identity: ebpf_shared::identity::ANY,
            protocol: protocol::ANY,
            ports: Some(53..=53),
            policy_id: 1,
        };
        let rules = if may_be_asked { vec![rule] } else { Vec::new() };
        let deny = DefaultDeny { enforced: Some(0), audited: None };
        let mut sets = RuleSets::default();
        let entry = compile(&Defaults { ingress: deny, egress: deny }, &rules, &mut sets);
        node.policy.put_class(1, &entry, &sets);
        node.policy.epoch += 1;
    }

    fn question(protocol: u8, tcp_flags: u8) -> Packet {
        Packet { src: PEER, dst: POD, src_port: 5000, dst_port: 53, protocol, tcp_flags, kind: Kind::Plain }
    }

    fn answer(protocol: u8, tcp_flags: u8) -> Packet {
        Packet { src: POD, dst: PEER, src_port: 53, dst_port: 5000, ..question(protocol, tcp_flags) }
    }

    fn asks(node: &mut Emulation, protocol: u8, tcp_flags: u8, now: u64) -> bool {
        node.decide(9, Direction::Ingress, &question(protocol, tcp_flags), now).ruling.passes()
    }

    fn answers(node: &mut Emulation, protocol: u8, tcp_flags: u8, now: u64) -> bool {
        node.decide(9, Direction::Egress, &answer(protocol, tcp_flags), now).ruling.passes()
    }

    #[test]
    fn an_answer_that_comes_too_late_is_nobodys() {
        let mut node = node();
        assert!(asks(&mut node, protocol::UDP, 0, 0));
        assert!(answers(&mut node, protocol::UDP, 0, 59 * SECOND));
        assert!(answers(&mut node, protocol::UDP, 0, (59 + 299) * SECOND));
        assert!(!answers(&mut node, protocol::UDP, 0, (59 + 299 + 301) * SECOND));
    }

    #[test]
    fn a_connection_outlives_the_name_that_it_was_made_by_and_a_new_one_is_refused() {
        let mut node = Emulation::default();
        node.endpoints.insert(9, Endpoint { identity: 300, class: 1, v4: POD, ..Endpoint::default() });
        let named = ebpf_shared::identity::LOCAL | 1;
        let rule = Rule {
            direction: Direction::Egress,
            allow: true,
            audit: false,
            redirect: None,
            identity: named,
            protocol: protocol::ANY,
            ports: None,
            policy_id: 1,
        };
        let deny = DefaultDeny { enforced: Some(0), audited: None };
        let mut sets = RuleSets::default();
        let entry = compile(&Defaults { egress: deny, ..Defaults::default() }, &[rule], &mut sets);
        node.policy.put_class(1, &entry, &sets);
        let peer = IpAddr::from(PEER);
        node.policy.identities.insert(peer.into(), named);
        let sends = |node: &mut Emulation, port, tcp_flags| {
            let packet = Packet { src_port: port, tcp_flags, ..answer(protocol::TCP, tcp_flags) };
            node.decide(9, Direction::Egress, &packet, 1).ruling.passes()
        };
        assert!(sends(&mut node, 53, tcp::SYN));
        node.policy.lingering.insert(peer, named);
        node.policy.identities.clear();
        node.policy.epoch += 1;
        assert!(sends(&mut node, 53, tcp::ACK), "what is there goes on");
        assert!(!sends(&mut node, 54, tcp::SYN), "and nothing new begins");
        node.policy.lingering.clear();
        node.policy.epoch += 1;
        assert!(!sends(&mut node, 53, tcp::ACK));
    }

    #[test]
    fn an_idle_connection_is_remembered_longer_than_it_takes_to_probe_it() {
        let mut node = node();
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 0));
        assert!(answers(&mut node, protocol::TCP, tcp::SYN | tcp::ACK, 1));
        assert!(asks(&mut node, protocol::TCP, tcp::ACK, 7_200 * SECOND));
        assert!(answers(&mut node, protocol::TCP, tcp::ACK, 14_400 * SECOND));
        assert!(!answers(&mut node, protocol::TCP, tcp::ACK, 30_000 * SECOND));
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 30_001 * SECOND), "and may be opened anew");
    }

    #[test]
    fn stragglers_of_a_cut_flow_keep_it_cut() {
        let mut node = node();
        assert!(asks(&mut node, protocol::UDP, 0, 0));
        isolate(&mut node, false);
        for minute in 0..10 {
            assert!(!answers(&mut node, protocol::UDP, 0, minute * 59 * SECOND));
            assert!(!asks(&mut node, protocol::UDP, 0, minute * 59 * SECOND + 1));
        }
        isolate(&mut node, true);
        assert!(answers(&mut node, protocol::UDP, 0, 600 * SECOND), "the flow was still known");
    }

    #[test]
    fn a_closed_connection_is_gone_after_a_moment() {
        let mut node = node();
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 0));
        assert!(answers(&mut node, protocol::TCP, tcp::FIN | tcp::ACK, 1));
        assert!(asks(&mut node, protocol::TCP, tcp::FIN | tcp::ACK, 2));
        assert!(answers(&mut node, protocol::TCP, tcp::ACK, 3));
        assert!(!answers(&mut node, protocol::TCP, tcp::ACK, 11 * SECOND));
    }

    #[test]
    fn the_narrowest_cidr_of_its_family_says_who_an_address_is() {
        let mut policy = Policy::default();
        let who = |policy: &Policy, text: &str| policy.identity(&text.parse::<IpAddr>().unwrap().into());
        for (net, identity) in [("::/0", 9), ("10.0.0.0/8", 11), ("10.1.2.3/32", 12), ("fd00::/8", 13)] {
            policy.identities.insert(net.parse().unwrap(), identity);
        }
        assert_eq!(who(&policy, "192.0.2.1"), ebpf_shared::identity::ANY, "no IPv6 range holds for IPv4");
        assert_eq!(who(&policy, "10.1.2.4"), 11);
        assert_eq!(who(&policy, "10.1.2.3"), 12);
        assert_eq!((who(&policy, "fd00::1"), who(&policy, "2001:db8::1")), (13, 9));
    }

    #[test]
    fn the_next_pod_with_an_interface_index_has_none_of_the_last_ones_connections() {
        let mut node = node();
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 0));
        assert!(answers(&mut node, protocol::TCP, tcp::SYN | tcp::ACK, 1));
        node.endpoints.insert(9, Endpoint { incarnation: 1, ..node.endpoints[&9] });
        assert!(!answers(&mut node, protocol::TCP, tcp::ACK, 2));
    }

    #[test]
    fn what_goes_on_at_once_is_what_would_be_let_pass_without_a_word() {
        let now = 100_000 * SECOND;
        let mut goes = 0;
        let bytes = |bits: u32, at: u32| (bits >> at & 1) as u8;
        let reasons = [0, 1, 2, 4, 15, 21, 22];
        let ages = [0, SECOND, SECOND + 1, 61 * SECOND, 9_000 * SECOND];
        for (cut, age, bits) in reasons
            .into_iter()
            .flat_map(|cut| ages.map(|age| (cut, age)))
            .flat_map(|(cut, age)| (0..1 << 9).map(move |bits| (cut, age, bits)))
        {
            let mut node = node();
            let protocol = if bytes(bits, 0) == 0 { protocol::TCP } else { protocol::UDP };
            let packet = answer(protocol, if protocol == protocol::TCP { tcp::ACK } else { 0 });
            let is_reply = bytes(bits, 1) != 0;
            let forward = ConnKey::of(9, &node.endpoints[&9], &packet, Direction::Egress);
            let entry = ConnEntry {
                seen: now - age,
                stamp: node.policy.epoch + u64::from(bytes(bits, 2)),
                class: 1 + u32::from(bytes(bits, 3)),
                cut,
                answered: bytes(bits, 4),
                closed_forward: bytes(bits, 5),
                closed_reply: bytes(bits, 6),
                midstream: bytes(bits, 7),
                twin: bytes(bits, 8),
                ..ConnEntry::default()
            };
            let key = if is_reply { forward.answered() } else { forward };
            node.connections.0.insert(key, entry);
            if entry.twin != 0 {
                node.connections.0.insert(key.answered(), ConnEntry { cut: 2, ..entry });
            }
            let basis = ebpf_shared::conntrack::Basis { stamp: node.policy.epoch, class: 1 };
            if !entry.goes_on(basis, is_reply, now) {
                continue;
            }
            goes += 1;
            let before = node.connections.clone();
            let decision = node.decide(9, Direction::Egress, &packet, now);
            assert!(decision.is_settled(), "{entry:?}");
            assert_eq!(decision.ruling.reason, Reason::Forwarded, "{entry:?}");
            assert_eq!(node.connections, before, "{entry:?}");
        }
        assert!(goes > 100, "{goes}");
    }

    #[test]
    fn flows_that_both_sides_have_begun_are_known_for_it() {
        let mut node = Emulation::default();
        node.endpoints.insert(9, Endpoint { identity: 300, class: 1, v4: POD, ..Endpoint::default() });
        let entry = compile(&Defaults::default(), &[], &mut RuleSets::default());
        node.policy.put_class(1, &entry, &RuleSets::default());
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 0));
        assert!(node.connections.0.values().all(|entry| entry.twin == 0));
        assert!(answers(&mut node, protocol::TCP, tcp::SYN, 1));
        let twins =
            |node: &Emulation| node.connections.0.values().map(|entry| entry.twin).collect::<Vec<_>>();
        assert_eq!(twins(&node), [1, 1]);
        assert!(asks(&mut node, protocol::TCP, tcp::SYN, 2));
        assert_eq!(twins(&node), [1, 1], "one that is opened anew has its twin still");
    }
}
