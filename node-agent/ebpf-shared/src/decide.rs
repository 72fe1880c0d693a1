//! The verdict on one packet: policy and conntrack together.
//!
//! ## Why a cut is a cut in both directions
//!
//! Every write to policy raises an *epoch* (see [`crate::epochs`]), and an entry remembers the stamp and the class that it
//! was judged under. A packet of either direction that meets others has the flow judged again, always as its first packet
//! was: by the direction that began and the port it went to. So the server's answers fall with the client's
//! requests, although the server's own egress policy may allow everything. Between changes a packet costs one
//! or two hash lookups and no policy lookup.
//!
//! A flow that loses is not forgotten but marked *cut*: were it forgotten, the next retransmission of the
//! server would look like a new flow that the server began, pass its egress policy, and carry the client's
//! packets in again as its answers. If policy allows the flow again before it is forgotten, it goes on.
//!
//! For the same reason a TCP segment of an unknown connection that is not its opening (after a reboot of
//! conntrack, or because the entry was displaced) passes only if policy allows a flow *in both directions*:
//! nobody knows which side began. Pods without policy don't notice; others reconnect.
//!
//! ## ICMP
//!
//! A query and its answers are a flow, and the errors about a flow belong to it: they follow it, whatever policy says of
//! their types. Any other message is a flow of its own, without answers. An answer or an error of which nobody knows the flow is
//! judged like such a message ([`of_no_flow`]): by its own type, and by who sent it.
//!
//! ## Flows that go by a proxy
//!
//! Where policy lets a flow only through a proxy ([`crate::redirect`]), what the pod sends is handed to the proxy's sockets, and
//! what the pod gets has to come from there: the other side's own packets are not for it. A proxy that asks
//! the other side in the pod's name has its answers, although they are addressed to the pod.
//!
//! A TCP connection is made with one side or the other, so it can't change over. One that is to go by a proxy from now on
//! is reset (the proxy's listener does not know it); one that is not to any more is cut like one that
//! policy forbids. Datagrams change over at once.

use crate::conntrack::Basis;
use crate::packet::{Kind, protocol};
use crate::policy::Question;
use crate::redirect::{Led, NO_SLOT, Proxies};
use crate::{
    ConnEntry, ConnKey, Conntrack, Direction, Endpoint, Packet, PolicyMaps, Reason, Ruling, identity, judge,
};

/// Everything about the moment that is not in a map.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// Read before anything that policy is made of, see [`crate::epochs`].
    pub endpoint: &'a Endpoint,
    /// Which way this packet goes.
    pub direction: Direction,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub now: u64,
    /// The packet was sent by a proxy of this node: see [`crate::redirect::MARK`].
    pub from_proxy: bool,
    /// It is a piece of a datagram.
    pub is_piece: bool,
}

/// What is to happen to a packet, and what is to be told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub ruling: Ruling,
    pub is_reply: bool,
    /// Whether an event is to be emitted: a new flow, a drop, or a flow that policy would drop from now on if it were
    /// not audited.
    pub is_news: bool,
}

impl Decision {
    /// Whether nothing is left to be done but to let the packet pass.
    #[inline(always)]
    pub const fn is_settled(&self) -> bool {
        !self.is_news && !matches!(self.ruling.reason, Reason::Redirected)
    }
}

/// Decides on a packet whose addresses have been checked against the endpoint.
#[inline(always)]
pub fn decide<P: PolicyMaps, C: Conntrack, X: Proxies>(
    policy: &P,
    connections: &mut C,
    proxies: &mut X,
    scene: &Scene<'_>,
    packet: &Packet,
) -> Decision {
    let decision = weigh(policy, connections, scene, packet);
    if decision.is_settled() { decision } else { settle(connections, proxies, scene, packet, decision) }
}

/// Which way a packet, or the one that an ICMP error quotes, went.
#[inline(always)]
const fn went(scene: &Scene<'_>, packet: &Packet) -> Direction {
    if matches!(packet.kind, Kind::Error) { scene.direction.opposite() } else { scene.direction }
}

/// The first half of [`decide`]: what conntrack and policy say.
#[inline(always)]
pub fn weigh<P: PolicyMaps, C: Conntrack>(
    policy: &P,
    connections: &mut C,
    scene: &Scene<'_>,
    packet: &Packet,
) -> Decision {
    let is_error = matches!(packet.kind, Kind::Error);
    let went = went(scene, packet);
    let opens = packet.opens();
    let forward = ConnKey::of(scene.ifindex, scene.endpoint, packet, went);
    let basis =
        Basis { stamp: policy.stamp(scene.endpoint.class, &forward.peer), class: scene.endpoint.judged_as() };

    let (known, is_reply) = match connections.get(&forward) {
        Some(entry) if entry.is_alive(scene.now, packet.protocol) => (Some(entry), false),
        // An opening never rides on a flow of the other side.
        _ if opens => (None, false),
        _ => match connections.get(&forward.answered()) {
            Some(entry) if entry.is_alive(scene.now, packet.protocol) => (Some(entry), true),
            _ => (None, false),
        },
    };

    match known {
        None if !matches!(packet.kind, Kind::Plain) => {
            Decision { ruling: Ruling::drop(Reason::UnrelatedIcmp, 0), is_reply, is_news: true }
        }
        None => {
            let midstream = packet.protocol == protocol::TCP && !opens;
            let mut ruling = rule(policy, scene, packet, went, false, midstream, false);
            if ruling.passes() {
                let entry = ConnEntry::begin(scene.now, basis, ruling, midstream);
                if connections.insert(&forward, &entry) {
                    note_twins(connections, &forward);
                } else {
                    ruling = Ruling::drop(Reason::ConntrackFull, ruling.policy_id);
                }
            }
            Decision { ruling, is_reply, is_news: true }
        }
        Some(entry) => {
            let was_over = entry.is_over();
            let was_audited = entry.is_audited();
            let was_redirected =
                matches!(Reason::from_entry(entry.cut), Reason::Redirected | Reason::ProxyGone);
            // What it is judged by is told of what the pod sends only, and a proxy sends nothing that was not asked for.
            let waits = was_redirected && is_reply && (scene.from_proxy || is_error);
            if opens || (entry.basis() != basis && !waits) {
                let midstream = entry.midstream != 0 && !opens;
                let mut ruling = rule(policy, scene, packet, went, is_reply, midstream, !opens);
                let stays = matches!(ruling.reason, Reason::Redirected) && ruling.proxy == entry.proxy;
                let is_connection = packet.protocol == protocol::TCP && !opens;
                if is_connection && was_redirected && !stays && ruling.passes() {
                    ruling = Ruling { reason: Reason::ProxyGone, proxy: entry.proxy, ..ruling };
                }
                if opens && ruling.passes() {
                    *entry =
                        ConnEntry { twin: entry.twin, ..ConnEntry::begin(scene.now, basis, ruling, false) };
                } else {
                    entry.rule(basis, ruling);
                }
            }
            if !is_error {
                entry.note(packet, is_reply, scene.now);
            }
            let ruling = Ruling {
                reason: Reason::from_entry(entry.cut),
                policy_id: entry.policy_id,
                proxy: entry.proxy,
            };
            let is_newly_audited = entry.is_audited() && !was_audited;
            let is_news = !ruling.passes() || (opens && was_over) || is_newly_audited;
            Decision { ruling, is_reply, is_news }
        }
    }
}

/// Notes that both sides have begun a flow. The new one is in place before the other is looked for: of two that come at the
/// same time, at least one sees both.
#[inline(always)]
fn note_twins<C: Conntrack>(connections: &mut C, new: &ConnKey) {
    let Some(other) = connections.get(&new.answered()) else { return };
    other.twin = 1;
    if let Some(own) = connections.get(new) {
        own.twin = 1;
    }
}

/// The second half of [`decide`], of what is not settled: hands to a proxy what is for one.
#[inline(always)]
pub fn settle<C: Conntrack, X: Proxies>(
    connections: &mut C,
    proxies: &mut X,
    scene: &Scene<'_>,
    packet: &Packet,
    decision: Decision,
) -> Decision {
    // Of no flow that goes on, and yet not the beginning of one: maybe it answers what a proxy has asked in the pod's name. It may
    // have done so from the port from which the pod asked the proxy.
    let is_redirected = matches!(decision.ruling.reason, Reason::Redirected);
    let may_be_answer = matches!(scene.direction, Direction::Ingress)
        && (decision.is_news || is_redirected)
        && !scene.from_proxy
        && !packet.opens();
    if may_be_answer && proxies.take_answer(packet) {
        if decision.is_news && decision.ruling.passes() {
            connections.remove(&ConnKey::of(scene.ifindex, scene.endpoint, packet, went(scene, packet)));
        }
        let ruling = Ruling { reason: Reason::Redirected, policy_id: 0, proxy: NO_SLOT };
        return Decision { ruling, is_reply: true, is_news: false };
    }
    if !is_redirected {
        return decision;
    }
    by_proxy(proxies, scene, packet, decision)
}

/// An ICMP message as it is, whatever flow it may belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Message {
    /// Whom it comes from; of one that the pod sends, whom it goes to.
    pub peer: crate::Addr,
    /// `type << 8 | code`.
    pub icmp: u16,
    /// 0: there is nothing to judge it by.
    pub is_whole: u16,
}

/// The last of [`decide`], after [`settle`]: of what answers or tells of a flow that nobody knows.
#[inline(always)]
pub fn of_no_flow<P: PolicyMaps>(
    policy: &P,
    scene: &Scene<'_>,
    message: &Message,
    decision: Decision,
) -> Decision {
    if !matches!(decision.ruling.reason, Reason::UnrelatedIcmp) || message.is_whole == 0 {
        return decision;
    }
    let question = Question {
        class: scene.endpoint.class,
        direction: scene.direction,
        identity: peer_identity(policy, &message.peer),
        protocol: if message.peer.is_v4() { protocol::ICMP } else { protocol::ICMPV6 },
        port: message.icmp,
    };
    let ruling = judge(policy, &question);
    let ruling = if scene.endpoint.is_audited() { ruling.audited() } else { ruling };
    // No proxy takes ICMP.
    if matches!(ruling.reason, Reason::Redirected) {
        return decision;
    }
    Decision { ruling, is_reply: false, is_news: true }
}

/// Carries out a redirect.
#[inline(always)]
fn by_proxy<X: Proxies>(proxies: &mut X, scene: &Scene<'_>, packet: &Packet, decision: Decision) -> Decision {
    let Ruling { policy_id, proxy, .. } = decision.ruling;
    let reason = match scene.direction {
        Direction::Ingress if scene.from_proxy => return decision,
        // The pieces would be put together without regard to whom each was handed.
        Direction::Egress if scene.is_piece => Reason::Fragment,
        Direction::Egress if proxies.take(packet, proxy, decision.is_reply) => return decision,
        // Of what others send, a listener could only be given where pods' packets come in.
        Direction::Ingress | Direction::Egress => Reason::ProxyGone,
    };
    Decision { ruling: Ruling { reason, policy_id, proxy }, is_news: true, ..decision }
}

/// Judges the flow that a packet belongs to, in the orientation in which the flow began. `exists`: it was judged before.
#[inline(always)]
fn rule<P: PolicyMaps>(
    policy: &P,
    scene: &Scene<'_>,
    packet: &Packet,
    went: Direction,
    is_reply: bool,
    midstream: bool,
    exists: bool,
) -> Ruling {
    let peer = match went {
        Direction::Ingress => &packet.src,
        Direction::Egress => &packet.dst,
    };
    let port = if is_reply { packet.src_port } else { packet.dst_port };
    let mut question = Question {
        class: scene.endpoint.class,
        direction: if is_reply { went.opposite() } else { went },
        identity: match exists {
            true => lasting_identity(policy, peer),
            false => peer_identity(policy, peer),
        },
        protocol: packet.protocol,
        port,
    };
    let led = match question.direction {
        Direction::Egress => policy.led(),
        Direction::Ingress => Led::NOWHERE,
    };
    if led.slot != NO_SLOT {
        question.identity = peer_identity(policy, &led.backend.addr);
        question.port = led.backend.port;
    }
    let mut ruling = judge(policy, &question);
    // With a proxy, there is no doubt who is to get it.
    if led.slot == NO_SLOT && midstream && ruling.passes() && !matches!(ruling.reason, Reason::Redirected) {
        question.direction = question.direction.opposite();
        question.port = if is_reply { packet.dst_port } else { packet.src_port };
        let other = judge(policy, &question);
        if !matches!(other.reason, Reason::Forwarded) {
            ruling = other;
        }
    }
    if scene.endpoint.is_audited() {
        ruling = ruling.audited();
    }
    if led.slot != NO_SLOT && ruling.passes() && !matches!(ruling.reason, Reason::Redirected) {
        ruling = Ruling { reason: Reason::Redirected, proxy: led.slot, ..ruling };
    }
    ruling
}

/// The identity behind an address.
#[inline(always)]
pub fn peer_identity<P: PolicyMaps>(policy: &P, addr: &crate::Addr) -> u32 {
    match policy.identity(addr) {
        identity::ANY => identity::WORLD,
        known => known,
    }
}

/// The same for a flow that is there already.
#[inline(always)]
fn lasting_identity<P: PolicyMaps>(policy: &P, addr: &crate::Addr) -> u32 {
    match policy.lingering(addr) {
        identity::ANY => peer_identity(policy, addr),
        known => known,
    }
}
