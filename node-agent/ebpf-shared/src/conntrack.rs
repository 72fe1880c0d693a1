//! Connections, as the programs at a pod's interface remember them.
//!
//! An entry belongs to one interface and says which side began the flow: two pods on one node have two
//! entries for the same connection, one where it leaves its client (judged by the client's egress policy)
//! and one where it reaches its server (judged by the server's ingress policy). So neither pod's policy can
//! be passed by on the other's entry.
//!
//! Of the two addresses only the peer's is kept: the other one is the pod's own of the same family, which the
//! programs have checked before they look here. So both families have one key, little longer than IPv4's was.

use crate::host::FOREIGN;
use crate::packet::{protocol, tcp};
use crate::{Addr, Direction, Endpoint, Packet, Reason, Ruling};

const SECOND: u64 = 1_000_000_000;

/// Key of `CONNTRACK`: a flow at one pod's interface, and which side began it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ConnKey {
    pub ifindex: u32,
    pub peer: Addr,
    /// The pod's.
    pub own_port: u16,
    pub peer_port: u16,
    pub protocol: u8,
    /// The [`Direction`] of the first packet: Egress if the pod began the flow.
    pub began: u8,
    /// Of the endpoint, see [`Endpoint::incarnation`]: flows of a pod that is gone are not those of the next one
    /// with the same interface index.
    pub incarnation: u16,
}

impl ConnKey {
    /// The flow that begins with this packet, which goes this way.
    #[inline(always)]
    pub const fn of(ifindex: u32, endpoint: &Endpoint, packet: &Packet, way: Direction) -> Self {
        let (peer, own_port, peer_port) = match way {
            Direction::Ingress => (packet.src, packet.dst_port, packet.src_port),
            Direction::Egress => (packet.dst, packet.src_port, packet.dst_port),
        };
        Self {
            ifindex,
            peer,
            own_port,
            peer_port,
            protocol: packet.protocol,
            began: way as u8,
            incarnation: endpoint.incarnation,
        }
    }

    /// The same tuple, begun by the other side: what a packet answers.
    #[inline(always)]
    #[must_use]
    pub const fn answered(&self) -> Self {
        Self { began: self.began ^ 1, ..*self }
    }
}

/// Value of `CONNTRACK`.
///
/// Each fact has a byte of its own: packets of both directions write at the same time on different CPUs,
/// and a lost update of a shared bit field could forget a FIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnEntry {
    /// `CLOCK_MONOTONIC` of about the last packet, nanoseconds.
    pub seen: u64,
    /// See [`Basis`].
    pub stamp: u64,
    pub class: u32,
    /// What the last judgement rested on.
    pub policy_id: u32,
    /// 0, or the [`Reason`] why the flow is cut (or, [`Reason::Audited`], would be, or goes by a proxy,
    /// [`Reason::Redirected`]). A cut flow is kept, so that its
    /// stragglers are not taken for the beginning of a new flow the other way.
    pub cut: u8,
    /// 1: an answer was seen.
    pub answered: u8,
    /// 1: the side that began has sent FIN, or either side RST.
    pub closed_forward: u8,
    /// 1: the side that answered has sent FIN, or either side RST.
    pub closed_reply: u8,
    /// 1: the beginning was not seen, so that policy has to allow both directions.
    pub midstream: u8,
    /// 1: the other side may have begun a flow of the same tuple as well ([`ConnKey::answered`]).
    pub twin: u8,
    /// The slot of the proxy that the flow goes by, or went by when it was cut.
    pub proxy: u16,
}

/// By what a flow was judged. While it is the same, so is the judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// See [`crate::epochs`].
    pub stamp: u64,
    /// [`Endpoint::judged_as`].
    pub class: u32,
}

impl ConnEntry {
    /// TCP that was not answered, and everything without connections.
    pub const SHORT: u64 = 60 * SECOND;
    /// UDP that was answered (RFC 4787, REQ-5 asks for 2 minutes, recommends 5).
    pub const UDP_ANSWERED: u64 = 300 * SECOND;
    /// What only passes under an address of the node's ([`FOREIGN`]) and has no connections: less than the 30 s after which
    /// Linux (`nf_conntrack_udp_timeout`) no longer knows whose the answers are, and takes them for the node's own.
    pub const FOREIGN: u64 = 25 * SECOND;
    /// An open TCP connection: longer than the 7,200 s after which Linux probes an idle one.
    pub const TCP_OPEN: u64 = 8_000 * SECOND;
    /// A TCP connection that both sides have closed.
    pub const TCP_CLOSED: u64 = 10 * SECOND;
    /// Time is noted this coarsely, so that a fast flow does not write to its entry with each packet.
    pub const COARSENESS: u64 = SECOND;

    /// A flow that `packet` begins.
    #[inline(always)]
    pub const fn begin(now: u64, basis: Basis, ruling: Ruling, midstream: bool) -> Self {
        Self {
            seen: now,
            stamp: basis.stamp,
            class: basis.class,
            policy_id: ruling.policy_id,
            cut: ruling.reason as u8,
            answered: 0,
            closed_forward: 0,
            closed_reply: 0,
            midstream: midstream as u8,
            twin: 0,
            proxy: ruling.proxy,
        }
    }

    /// How long the flow may be silent, in nanoseconds.
    #[inline(always)]
    pub const fn lifetime(&self, protocol: u8) -> u64 {
        // A proxy's answers to the other side are not seen here.
        let answered = self.answered != 0 || self.midstream != 0 || self.is_redirected();
        match protocol {
            protocol::TCP if self.closed_forward != 0 && self.closed_reply != 0 => Self::TCP_CLOSED,
            _ if self.class == FOREIGN && protocol != protocol::TCP => Self::FOREIGN,
            protocol::TCP | protocol::SCTP if answered || self.is_cut() => Self::TCP_OPEN,
            protocol::UDP if answered => Self::UDP_ANSWERED,
            _ => Self::SHORT,
        }
    }

    /// Whether the entry still counts.
    #[inline(always)]
    pub const fn is_alive(&self, now: u64, protocol: u8) -> bool {
        // Another CPU may have noted a time just after ours.
        now.saturating_sub(self.seen) < self.lifetime(protocol)
    }

    /// Whether a packet of the flow that neither opens nor closes it passes, with nothing to be judged, noted or told: what
    /// [`crate::decide::weigh`] comes to, said of most packets at once. False means nothing but that `weigh` has to be asked.
    #[inline(always)]
    pub const fn goes_on(&self, basis: Basis, is_reply: bool, now: u64) -> bool {
        // A flow that was silent for no longer is alive, whatever its lifetime.
        now.saturating_sub(self.seen) <= Self::COARSENESS
            && self.cut == Reason::Forwarded as u8
            && self.stamp == basis.stamp
            && self.class == basis.class
            // Of two flows, the one that the packet's sender began comes first.
            && (!is_reply || (self.answered != 0 && self.twin == 0))
    }

    /// Notes a packet of the flow. A closed connection is not kept alive by it.
    #[inline(always)]
    pub fn note(&mut self, packet: &Packet, is_reply: bool, now: u64) {
        if now.saturating_sub(self.seen) > Self::COARSENESS
            && (self.closed_forward == 0 || self.closed_reply == 0)
        {
            self.seen = now;
        }
        if is_reply && self.answered == 0 {
            self.answered = 1;
            self.seen = now;
        }
        if packet.protocol == protocol::TCP && packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            let reset = packet.tcp_flags & tcp::RST != 0;
            if reset || !is_reply {
                self.closed_forward = 1;
            }
            if reset || is_reply {
                self.closed_reply = 1;
            }
            self.seen = now;
        }
    }

    /// Whether the flow has come to an end, so that another SYN begins a different one.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.is_cut() || self.answered != 0 || self.closed_forward != 0
    }

    #[inline(always)]
    const fn is_cut(&self) -> bool {
        !Reason::from_entry(self.cut).passes()
    }

    /// Whether it passes only because policy is audited.
    #[inline(always)]
    pub const fn is_audited(&self) -> bool {
        self.cut == Reason::Audited as u8
    }

    /// Whether it goes by a proxy.
    #[inline(always)]
    pub const fn is_redirected(&self) -> bool {
        self.cut == Reason::Redirected as u8
    }

    #[inline(always)]
    pub const fn basis(&self) -> Basis {
        Basis { stamp: self.stamp, class: self.class }
    }

    /// Cuts the flow, or lets a cut one go on.
    #[inline(always)]
    pub fn rule(&mut self, basis: Basis, ruling: Ruling) {
        self.policy_id = ruling.policy_id;
        self.cut = ruling.reason as u8;
        self.proxy = ruling.proxy;
        self.class = basis.class;
        self.stamp = basis.stamp;
    }
}

/// The connections of all interfaces.
pub trait Conntrack {
    fn get(&mut self, key: &ConnKey) -> Option<&mut ConnEntry>;
    /// False if there was no room.
    fn insert(&mut self, key: &ConnKey, entry: &ConnEntry) -> bool;
    fn remove(&mut self, key: &ConnKey);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;
    use crate::packet::Kind;

    fn packet(tcp_flags: u8) -> Packet {
        Packet {
            src: Ip4::from_be(1).into(),
            dst: Ip4::from_be(2).into(),
            src_port: 3,
            dst_port: 4,
            protocol: protocol::TCP,
            tcp_flags,
            kind: Kind::Plain,
        }
    }

    #[test]
    fn keys_and_entries_have_no_implicit_padding() {
        assert_eq!(size_of::<ConnKey>(), 4 + 16 + 2 + 2 + 1 + 1 + 2);
        assert_eq!(size_of::<ConnEntry>(), 8 + 8 + 2 * 4 + 5 + 1 + 2);
    }

    #[test]
    fn an_answer_has_the_key_of_what_it_answers() {
        let there = packet(tcp::SYN);
        let back = Packet { src: there.dst, dst: there.src, src_port: 4, dst_port: 3, ..there };
        let pod = Endpoint { incarnation: 9, ..Endpoint::default() };
        let asked = ConnKey::of(7, &pod, &there, Direction::Egress);
        assert_eq!(ConnKey::of(7, &pod, &back, Direction::Ingress).answered(), asked);
        assert_eq!((asked.peer, asked.own_port, asked.peer_port, asked.incarnation), (there.dst, 3, 4, 9));
    }

    #[test]
    fn an_unanswered_flow_is_forgotten_before_an_answered_one() {
        let mut entry = ConnEntry::begin(0, Basis::default(), Ruling::pass(0), false);
        assert!(entry.is_alive(ConnEntry::SHORT - 1, protocol::TCP));
        assert!(!entry.is_alive(ConnEntry::SHORT, protocol::TCP));
        entry.note(&packet(tcp::SYN | tcp::ACK), true, 5);
        assert!(entry.is_alive(ConnEntry::TCP_OPEN, protocol::TCP));
        assert!(!entry.is_alive(ConnEntry::TCP_OPEN + 5, protocol::TCP));
    }

    #[test]
    fn a_flow_that_is_not_the_node_s_is_forgotten_before_linux_forgets_it() {
        let entry = ConnEntry { class: FOREIGN, answered: 1, ..ConnEntry::default() };
        for protocol in [protocol::UDP, protocol::ICMP, protocol::ICMPV6, protocol::SCTP] {
            assert!(entry.is_alive(ConnEntry::FOREIGN - 1, protocol));
            assert!(!entry.is_alive(ConnEntry::FOREIGN, protocol), "{protocol}");
        }
        const { assert!(ConnEntry::FOREIGN + ConnEntry::COARSENESS < 30 * SECOND) };
        assert!(entry.is_alive(ConnEntry::FOREIGN, protocol::TCP), "an opening is never taken for an answer");
        let own = ConnEntry { class: 1, ..entry };
        assert!(own.is_alive(ConnEntry::FOREIGN, protocol::UDP));
    }

    #[test]
    fn a_half_closed_connection_lives_on_and_a_closed_one_does_not() {
        let mut entry = ConnEntry::begin(0, Basis::default(), Ruling::pass(0), false);
        entry.note(&packet(tcp::ACK), true, 1);
        entry.note(&packet(tcp::FIN | tcp::ACK), false, 2);
        assert!(entry.is_alive(ConnEntry::TCP_OPEN, protocol::TCP));
        entry.note(&packet(tcp::FIN | tcp::ACK), true, 3);
        assert!(!entry.is_alive(ConnEntry::TCP_CLOSED + 3, protocol::TCP));
        entry.note(&packet(tcp::ACK), false, 5 * SECOND);
        assert!(!entry.is_alive(ConnEntry::TCP_CLOSED + 3, protocol::TCP), "not kept alive by stragglers");
    }

    #[test]
    fn a_reset_from_either_side_closes_both() {
        for is_reply in [false, true] {
            let mut entry = ConnEntry::begin(0, Basis::default(), Ruling::pass(0), false);
            entry.note(&packet(tcp::RST), is_reply, 2);
            assert_eq!((entry.closed_forward, entry.closed_reply), (1, 1));
        }
    }
}
