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

use crate::conntrack::Basis;
use crate::packet::{Kind, icmp, protocol};
use crate::policy::Question;
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

/// Decides on a packet whose addresses have been checked against the endpoint.
#[inline(always)]
pub fn decide<P: PolicyMaps, C: Conntrack>(
    policy: &P,
    connections: &mut C,
    scene: &Scene<'_>,
    packet: &Packet,
) -> Decision {
    // The packet that an ICMP error quotes went the other way.
    let is_error = matches!(packet.kind, Kind::Error);
    let went = if is_error { scene.direction.opposite() } else { scene.direction };
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
                if !connections.insert(&forward, &entry) {
                    ruling = Ruling::drop(Reason::ConntrackFull, ruling.policy_id);
                }
            }
            Decision { ruling, is_reply, is_news: true }
        }
        Some(entry) => {
            let was_over = entry.is_over();
            let was_audited = entry.is_audited();
            if opens || entry.basis() != basis {
                let midstream = entry.midstream != 0 && !opens;
                let ruling = rule(policy, scene, packet, went, is_reply, midstream, !opens);
                if opens && ruling.passes() {
                    *entry = ConnEntry::begin(scene.now, basis, ruling, false);
                } else {
                    entry.rule(basis, ruling);
                }
            }
            if !is_error {
                entry.note(packet, is_reply, scene.now);
            }
            let ruling = Ruling { reason: Reason::from_entry(entry.cut), policy_id: entry.policy_id };
            let is_newly_audited = entry.is_audited() && !was_audited;
            let is_news = !ruling.passes() || (opens && was_over) || is_newly_audited;
            Decision { ruling, is_reply, is_news }
        }
    }
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
        // An echo's identifier is no port, and only an echo begins a flow.
        port: match packet.protocol {
            protocol::ICMP => icmp::ECHO,
            protocol::ICMPV6 => icmp::ECHO6,
            _ => port,
        },
    };
    let mut ruling = judge(policy, &question);
    if midstream && ruling.passes() {
        question.direction = question.direction.opposite();
        question.port = if is_reply { packet.dst_port } else { packet.src_port };
        let other = judge(policy, &question);
        if !matches!(other.reason, Reason::Forwarded) {
            ruling = other;
        }
    }
    if scene.endpoint.is_audited() { ruling.audited() } else { ruling }
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
