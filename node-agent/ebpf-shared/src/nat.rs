//! Translating packets that ask for a service, and their answers.
//!
//! Sockets of the pods on this node are translated where they connect ([`mod@crate::balance`]); what is left for packets
//! are clients outside the mesh, and programs in pods that pass the socket hooks by. Of each flow there are two entries, one
//! for each way: what a packet is when it comes, and what it becomes. So an established flow costs one lookup, and nobody
//! has to know why it is translated.
//!
//! | asked at | backend | becomes | and on the way back, at |
//! | --- | --- | --- | --- |
//! | a pod's door | elsewhere | pod → backend | the pod's door: service → pod |
//! | a pod's door | the pod itself | [`loopback`] → pod | the pod's door: service → pod |
//! | the node's interface | here | client → backend | the node's interface: service → client |
//! | the node's interface | elsewhere | node → backend | the node's interface: service → client |
//! | the same, TCP, [`ServiceValue::DIRECT`] | elsewhere | client → backend | the *other* node's interface: service → client |
//!
//! With an overlay, the tunnel's device is one of the node's own interfaces: by it pods of other nodes ask, and backends
//! of other nodes are asked and answer. Nothing is answered directly through it: a node is believed in the tunnel for its
//! own addresses and its pods' only.
//!
//! A backend that is gone leaves its number behind in entries, and that has no `BACKENDS` entry any more: the next packet
//! of the client chooses anew. One that ends keeps its flows, and gets no new ones.

use crate::balance::{Ask, Choice, balance};
use crate::packet::{Kind, protocol, tcp};
use crate::redirect::Led;
use crate::service::{AnswererKey, scope};
use crate::{Addr, Backend, Ip4, Packet, Reason, ServiceKey, ServiceMaps, ServiceValue, SockAddr, maglev};

const SECOND: u64 = 1_000_000_000;

/// Where a packet is met.
pub mod place {
    /// It leaves a pod.
    pub const FROM_POD: u8 = 0;
    /// It is about to reach one.
    pub const TO_POD: u8 = 1;
    /// It comes in by the node's own interface.
    pub const FROM_NET: u8 = 2;
    /// It goes out there.
    pub const TO_NET: u8 = 3;
}

/// Which way a translated packet goes on.
pub mod way {
    /// As the host routes it.
    pub const ROUTED: u8 = 0;
    /// Out by the node's interface, or into the tunnel: the host would not forward what has its own address as source.
    pub const OUT: u8 = 1;
    /// Back into the pod that it comes from.
    pub const BACK: u8 = 2;
    /// Out by the node's interface, as from the client itself: the answers don't come back here. What opens the connection
    /// says whom the client asked, so that the backend's node can answer in its name.
    pub const DIRECT: u8 = 3;
    /// It is not translated.
    pub const PASS: u8 = 4;
    /// It goes nowhere.
    pub const DROP: u8 = 5;
    /// It is not translated, but goes to a proxy of the node; what the verdict is to be about is in the tuple.
    pub const LED: u8 = 6;
}

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub src_port: u16,
    pub dst_port: u16,
}

impl Tuple {
    /// Of a packet that goes the way of the flow it belongs to: an error goes against that of what it quotes.
    #[inline(always)]
    pub const fn of(packet: &Packet) -> Self {
        let Packet { src, dst, src_port, dst_port, .. } = *packet;
        let tuple = Self { src, dst, src_port, dst_port };
        if matches!(packet.kind, Kind::Error) { tuple.reversed() } else { tuple }
    }

    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }

    /// The same flow, to a backend.
    #[inline(always)]
    const fn to(&self, at: SockAddr) -> Self {
        Self { dst: at.addr, dst_port: at.port, ..*self }
    }

    #[inline(always)]
    pub const fn hash(&self, protocol: u8) -> u32 {
        let ports = (self.src_port as u32) << 16 | self.dst_port as u32;
        maglev::tuple(&[self.src.words(), self.dst.words(), [ports, protocol as u32, 0, 0]])
    }
}

/// Key of `NAT`: a packet as it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct NatKey {
    pub tuple: Tuple,
    pub protocol: u8,
    /// One of [`place`].
    pub place: u8,
    pub padding: u16,
}

/// Value of `NAT`: what it becomes. As in [`crate::ConnEntry`], each fact has a byte of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NatValue {
    /// `CLOCK_MONOTONIC` of about the last packet, nanoseconds.
    pub seen: u64,
    pub tuple: Tuple,
    /// Whom the flow goes to.
    pub backend: u32,
    /// One of [`way`].
    pub way: u8,
    /// 1: it is the half of the answers.
    pub is_reply: u8,
    /// 1: there was an answer.
    pub answered: u8,
    /// 1: either side has sent FIN or RST.
    pub closed: u8,
    /// The interface by which it goes out, where that is its [`way`].
    pub ifindex: u32,
    /// Who gets it next there: whom packets of the other half come from. Zero: not known yet.
    pub mac: [u8; 6],
    pub padding: u16,
}

impl NatValue {
    /// How long a flow that nobody has answered is remembered.
    pub const SHORT: u64 = 60 * SECOND;
    /// One of UDP that was.
    pub const UDP: u64 = 300 * SECOND;
    /// An open TCP connection, see [`crate::ConnEntry::TCP_OPEN`].
    pub const TCP: u64 = crate::ConnEntry::TCP_OPEN;
    /// One that is being closed: what is left of it may take two minutes (RFC 9293, section 3.4.2).
    pub const CLOSED: u64 = 120 * SECOND;

    /// Whether a packet that neither opens nor closes is translated by this with nothing to be noted, provided that the
    /// backend is there: what [`go_on`] comes to, said of most packets at once.
    #[inline(always)]
    pub const fn goes_on(&self, now: u64) -> bool {
        // Whatever its lifetime, it has not been silent for so long.
        self.way == way::ROUTED
            && now.saturating_sub(self.seen) <= SECOND
            && (self.is_reply == 0 || self.answered != 0)
    }

    #[inline(always)]
    pub const fn is_alive(&self, now: u64, protocol: u8) -> bool {
        let lifetime = if self.closed != 0 {
            Self::CLOSED
        } else if self.is_reply != 0 && self.answered == 0 {
            Self::SHORT
        } else if protocol == protocol::TCP {
            Self::TCP
        } else {
            Self::UDP
        };
        now.saturating_sub(self.seen) < lifetime
    }
}

/// Value of `CONFIG`: the node itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NodeConfig {
    /// What packets to backends elsewhere have as source; [`Addr::UNSPECIFIED`]: none of this family.
    pub v4: Addr,
    pub v6: Addr,
    /// The ports that they have, inclusive: none that the host gives to its own sockets.
    pub first_port: u16,
    pub last_port: u16,
    /// The interface by which the other nodes are reached. (Nothing but GPL programs may ask for routes.)
    pub ifindex: u32,
    /// The tunnel's device, by which their pods are; 0: there is none.
    pub tunnel: u32,
}

/// Whether a packet of a known flow may be sent on at once, without [`go_on`]: nothing is to be noted, and it goes out where it
/// came in.
#[inline(always)]
pub const fn is_short_cut(entry: &NatValue, ifindex: u32, now: u64) -> bool {
    let [a, b, c, d, e, f] = entry.mac;
    entry.way == way::OUT
        && entry.ifindex == ifindex
        && entry.closed == 0
        && (entry.is_reply == 0 || entry.answered != 0)
        && now.saturating_sub(entry.seen) <= SECOND
        && a | b | c | d | e | f != 0
}

/// Who a pod believes to talk to when it talks to itself through a service.
#[inline(always)]
pub const fn loopback(is_v4: bool) -> Addr {
    if is_v4 {
        Addr::v4(Ip4::from_be(u32::from_ne_bytes([169, 254, 42, 1])))
    } else {
        Addr::from_words([0xfd00_0000_u32.to_be(), 0, 0, 0x0042_0001_u32.to_be()])
    }
}

/// The maps that [`translate`] uses besides those of the choice.
pub trait NatMaps: ServiceMaps {
    fn nat(&mut self, key: &NatKey) -> Option<&mut NatValue>;
    /// False if there is no room, or if it is to be new and is not.
    fn set_nat(&mut self, key: &NatKey, value: &NatValue, is_new: bool) -> bool;
    fn remove_nat(&mut self, key: &NatKey);
    /// A flow that was translated is about to be translated otherwise: whoever remembers how it was is to look again.
    fn turn_over(&mut self) {}
    fn node(&self) -> NodeConfig;
    /// Whether an address is one of the other nodes' or their pods', and there is a tunnel to them.
    fn is_tunnelled(&self, addr: &Addr) -> bool;
    /// Whether an address is another node's own.
    fn is_other_node(&self, addr: &Addr) -> bool;
    /// Whether a backend of this node may answer the clients of a service directly.
    fn answers(&self, key: &AnswererKey) -> bool;

    /// The interface by which a backend elsewhere is reached.
    #[inline(always)]
    fn exit(&self, addr: &Addr) -> u32 {
        let node = self.node();
        if node.tunnel != 0 && self.is_tunnelled(addr) { node.tunnel } else { node.ifindex }
    }
}

/// A packet that may have to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub tuple: Tuple,
    pub protocol: u8,
    /// One of [`place`].
    pub place: u8,
    /// Of the interface there.
    pub ifindex: u32,
    /// Of who sent the frame.
    pub mac: [u8; 6],
    pub is_error: bool,
    /// It asks for a new connection.
    pub opens: bool,
    /// FIN or RST.
    pub closes: bool,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub now: u64,
}

impl Arrival {
    #[inline(always)]
    pub fn of(packet: &Packet, place: u8, ifindex: u32, mac: [u8; 6], now: u64) -> Self {
        let is_tcp = packet.protocol == protocol::TCP;
        Self {
            tuple: Tuple::of(packet),
            protocol: packet.protocol,
            place,
            ifindex,
            mac,
            is_error: matches!(packet.kind, Kind::Error),
            opens: packet.opens(),
            closes: is_tcp && packet.tcp_flags & (tcp::FIN | tcp::RST) != 0,
            now,
        }
    }

    #[inline(always)]
    const fn key(&self) -> NatKey {
        NatKey { tuple: self.tuple, protocol: self.protocol, place: self.place, padding: 0 }
    }
}

/// What is to become of a packet. (No enum: where one has nothing to say, compilers leave what was there before, and the
/// verifier refuses to copy that.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Outcome {
    pub tuple: Tuple,
    /// Where it goes out, see [`NatValue::ifindex`]; or the proxy's slot.
    pub ifindex: u32,
    /// One of [`way`].
    pub way: u8,
    /// Why it is dropped, if it is.
    pub reason: Reason,
    pub padding: u16,
}

impl Outcome {
    /// It is not about a service.
    pub const PASS: Self = Self {
        tuple: Tuple { src: Addr::UNSPECIFIED, dst: Addr::UNSPECIFIED, src_port: 0, dst_port: 0 },
        ifindex: 0,
        way: way::PASS,
        reason: Reason::Forwarded,
        padding: 0,
    };

    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self { way: way::DROP, reason, ..Self::PASS }
    }

    #[inline(always)]
    const fn led(led: Led) -> Self {
        let mut to = Self { way: way::LED, ifindex: led.slot as u32, ..Self::PASS };
        to.tuple.dst = led.backend.addr;
        to.tuple.dst_port = led.backend.port;
        to
    }

    #[inline(always)]
    const fn to(entry: &NatValue) -> Self {
        Self { tuple: entry.tuple, ifindex: entry.ifindex, way: entry.way, ..Self::PASS }
    }

    /// Whether it is translated.
    #[inline(always)]
    pub const fn is_translated(&self) -> bool {
        self.way < way::PASS
    }
}

/// Finds how a packet is translated, and for the first one of a flow, chooses.
#[inline(always)]
pub fn translate<M: NatMaps>(maps: &mut M, arrival: &Arrival) -> Outcome {
    let known = go_on(maps, arrival);
    if known.is_translated() {
        return known;
    }
    let begun = begin(maps, arrival);
    if begun.way == way::PASS {
        supersede(maps, arrival);
    }
    begun
}

/// Of a flow that is known.
#[inline(always)]
pub fn go_on<M: NatMaps>(maps: &mut M, arrival: &Arrival) -> Outcome {
    let key = arrival.key();
    let known = match maps.nat(&key) {
        Some(entry) if entry.is_alive(arrival.now, arrival.protocol) => {
            if entry.is_reply != 0 && entry.answered == 0 {
                entry.answered = 1;
            }
            let before = *entry;
            if arrival.now.saturating_sub(entry.seen) > SECOND {
                entry.seen = arrival.now;
            }
            Some(before)
        }
        _ => None,
    };
    if let Some(entry) = known {
        if (entry.is_reply != 0 || is_usable(maps, arrival, &entry))
            && (arrival.is_error || keep(maps, arrival, &key, &entry))
        {
            return Outcome::to(&entry);
        }
        maps.turn_over();
    }
    Outcome::PASS
}

/// Of a connection that is opened past any service: if its ends are those of a translated one that was closed a while ago,
/// the answers are its own from now on.
#[inline(always)]
pub fn supersede<M: NatMaps>(maps: &mut M, arrival: &Arrival) {
    let place = match arrival.place {
        place::FROM_POD => place::TO_POD,
        place::FROM_NET => place::TO_NET,
        _ => return,
    };
    if !arrival.opens {
        return;
    }
    let answer = NatKey { tuple: arrival.tuple.reversed(), protocol: arrival.protocol, place, padding: 0 };
    let is_past = match maps.nat(&answer) {
        Some(half) => half.is_reply != 0 && half.closed != 0,
        None => false,
    };
    if is_past {
        maps.remove_nat(&answer);
        maps.turn_over();
    }
}

/// Whether a flow may go on to its backend.
#[inline(always)]
fn is_usable<M: NatMaps>(maps: &M, arrival: &Arrival, entry: &NatValue) -> bool {
    match maps.backend(entry.backend) {
        Some(backend) => !arrival.opens || backend.flags & Backend::CHOSEN != 0,
        None => false,
    }
}

/// Notes a packet in the other half as well: that is rarely needed. False if that half is another flow's by now.
#[inline(always)]
fn keep<M: NatMaps>(maps: &mut M, arrival: &Arrival, key: &NatKey, entry: &NatValue) -> bool {
    let closes = arrival.closes && entry.closed == 0;
    let is_time = arrival.now.saturating_sub(entry.seen) > SECOND;
    if !closes && !is_time && !arrival.opens {
        return true;
    }
    let closed = if arrival.opens { 0 } else { arrival.closes as u8 | entry.closed };
    if let Some(own) = maps.nat(key) {
        own.closed = closed;
    }
    // Its other half, if it has one, is on another node.
    if entry.way == way::DIRECT {
        return true;
    }
    let other = other_half(key, entry);
    let answer = NatValue {
        seen: arrival.now,
        tuple: key.tuple.reversed(),
        backend: entry.backend,
        way: entry.way,
        is_reply: entry.is_reply ^ 1,
        answered: entry.is_reply,
        closed,
        ifindex: if entry.is_reply == 0 { arrival.ifindex } else { maps.exit(&key.tuple.src) },
        mac: arrival.mac,
        padding: 0,
    };
    match maps.nat(&other) {
        Some(half) if half.tuple == answer.tuple => {
            half.seen = arrival.now;
            half.closed = closed;
            half.mac = arrival.mac;
            true
        }
        Some(half) if half.is_alive(arrival.now, arrival.protocol) => false,
        // It had to make room for others.
        _ => maps.set_nat(&other, &answer, false),
    }
}

/// Where packets of the other direction are met, and what they are there.
#[inline(always)]
fn other_half(key: &NatKey, entry: &NatValue) -> NatKey {
    let place = match (entry.way, key.place) {
        (way::ROUTED, place::FROM_POD) => place::TO_POD,
        (way::ROUTED, place::TO_POD) => place::FROM_POD,
        (way::ROUTED, place::FROM_NET) => place::TO_NET,
        (way::ROUTED, place::TO_NET) => place::FROM_NET,
        (_, same) => same,
    };
    NatKey { tuple: entry.tuple.reversed(), protocol: key.protocol, place, padding: 0 }
}

/// Of a flow that begins, or whose backend is gone.
#[inline(always)]
pub fn begin<M: NatMaps>(maps: &mut M, arrival: &Arrival) -> Outcome {
    if arrival.is_error || arrival.place == place::TO_POD || arrival.place == place::TO_NET {
        return Outcome::PASS;
    }
    let tuple = arrival.tuple;
    let from_pod = arrival.place == place::FROM_POD;
    let hash = tuple.hash(arrival.protocol);
    let scope = if from_pod { scope::INSIDE } else { scope::OUTSIDE };
    let ask = Ask {
        key: ServiceKey::new(tuple.dst, tuple.dst_port, arrival.protocol, scope),
        client: tuple.src,
        hash,
        now: || arrival.now,
        has_sidecar: || false,
    };
    let target = match balance(maps, &ask) {
        Choice::NotAService | Choice::Proxy(_) => return Outcome::PASS,
        Choice::ByProxy(led) => return Outcome::led(led),
        Choice::NoBackend => return Outcome::drop(Reason::NoBackend),
        Choice::SourceRange => return Outcome::drop(Reason::SourceRange),
        Choice::To(target) => target,
    };
    let mut entry = NatValue {
        seen: arrival.now,
        tuple: tuple.to(target.at),
        backend: target.number,
        way: way::ROUTED,
        ..NatValue::default()
    };
    let key = arrival.key();
    let mut reply = NatValue { tuple: tuple.reversed(), is_reply: 1, ..entry };
    let fits = if from_pod {
        if target.at.addr == tuple.src {
            entry.tuple.src = loopback(tuple.src.is_v4());
            entry.way = way::BACK;
            reply.way = way::BACK;
        }
        maps.set_nat(&other_half(&key, &entry), &reply, false)
    } else if target.flags & Backend::HERE != 0 {
        maps.set_nat(&other_half(&key, &entry), &reply, false)
    } else {
        let node = maps.node();
        entry.ifindex = maps.exit(&target.at.addr);
        let is_direct = target.service_flags & ServiceValue::DIRECT != 0
            && arrival.protocol == protocol::TCP
            && entry.ifindex == node.ifindex;
        if is_direct {
            // (A datagram would have to say it each time, and might have no room left for that.)
            entry.way = way::DIRECT;
            true
        } else {
            entry.tuple.src = if tuple.dst.is_v4() { node.v4 } else { node.v6 };
            entry.way = way::OUT;
            (reply.way, reply.ifindex, reply.mac) = (way::OUT, arrival.ifindex, arrival.mac);
            !entry.tuple.src.is_unspecified() && borrow_port(maps, &key, &mut entry, &reply, &node, hash)
        }
    };
    if fits && maps.set_nat(&key, &entry, false) {
        Outcome::to(&entry)
    } else {
        Outcome::drop(Reason::NatExhausted)
    }
}

/// Takes note of whom a client of another node's asked, so that a backend here answers in its name. False if that is no
/// address of a service that is answered directly and has the backend, or if the client is being answered in another name:
/// nobody else may choose by what address a node speaks.
#[inline(always)]
pub fn answer_for<M: NatMaps>(maps: &mut M, arrival: &Arrival, asked: SockAddr) -> bool {
    let node = maps.node();
    let tuple = arrival.tuple;
    // (In the tunnel, nodes are believed for other addresses: see above.)
    let is_from_tunnel = node.tunnel != 0 && arrival.ifindex == node.tunnel;
    if is_from_tunnel || asked.addr.is_v4() != tuple.dst.is_v4() {
        return false;
    }
    // Of a node port, this node has its own address only; the same is served at those of the others.
    let at = if maps.is_other_node(&asked.addr) {
        if asked.addr.is_v4() { node.v4 } else { node.v6 }
    } else {
        asked.addr
    };
    let backend = SockAddr::new(tuple.dst, tuple.dst_port);
    let known = match maps.service(&ServiceKey::new(at, asked.port, protocol::TCP, scope::OUTSIDE)) {
        Some(service) if service.flags & ServiceValue::DIRECT != 0 => {
            maps.answers(&AnswererKey { service: service.id, at: backend })
        }
        _ => false,
    };
    if !known {
        return false;
    }
    let answer = tuple.reversed();
    let key = NatKey { tuple: answer, protocol: arrival.protocol, place: place::TO_NET, padding: 0 };
    let entry = NatValue {
        seen: arrival.now,
        tuple: Tuple { src: asked.addr, src_port: asked.port, ..answer },
        way: way::DIRECT,
        is_reply: 1,
        ..NatValue::default()
    };
    let is_taken = match maps.nat(&key) {
        Some(half) => {
            half.tuple != entry.tuple && half.closed == 0 && half.is_alive(arrival.now, arrival.protocol)
        }
        None => false,
    };
    !is_taken && maps.set_nat(&key, &entry, false)
}

/// Ports that are tried before a packet is dropped; its sender tries again.
const ATTEMPTS: u32 = 8;

/// Finds a port of the node's that no other flow to the backend has.
#[inline(always)]
fn borrow_port<M: NatMaps>(
    maps: &mut M,
    key: &NatKey,
    entry: &mut NatValue,
    reply: &NatValue,
    node: &NodeConfig,
    hash: u32,
) -> bool {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        entry.tuple.src_port = port(hash, attempt, node);
        let other = other_half(key, entry);
        if maps.set_nat(&other, reply, true) {
            return true;
        }
        let is_free = match maps.nat(&other) {
            Some(half) => half.tuple == reply.tuple || !half.is_alive(reply.seen, key.protocol),
            None => true,
        };
        if is_free && maps.set_nat(&other, reply, false) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// The port to be tried. Attempts are far apart, so that neighbours are not all taken by one that is busy.
#[inline(always)]
fn port(hash: u32, attempt: u32, node: &NodeConfig) -> u16 {
    let count = u32::from(node.last_port.saturating_sub(node.first_port)) + 1;
    let spread = hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b1));
    node.first_port.wrapping_add(maglev::slot(spread, count) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<Tuple>(), 2 * 16 + 2 * 2);
        assert_eq!(size_of::<NatKey>(), 36 + 1 + 1 + 2);
        assert_eq!(size_of::<NatValue>(), 8 + 36 + 4 + 4 + 4 + 6 + 2);
        assert_eq!(size_of::<NodeConfig>(), 2 * 16 + 2 * 2 + 2 * 4);
    }

    #[test]
    fn ports_stay_within_the_range() {
        let node = NodeConfig { first_port: 61_000, last_port: 65_535, ..NodeConfig::default() };
        for hash in [0, 1, u32::MAX / 2, u32::MAX] {
            let ports = (0..ATTEMPTS).map(|attempt| port(hash, attempt, &node));
            assert!(ports.into_iter().all(|port| port >= 61_000));
        }
        let one = NodeConfig { last_port: 61_000, ..node };
        assert_eq!(port(u32::MAX, 7, &one), 61_000);
    }

    #[test]
    fn the_two_halves_of_a_flow_find_each_other() {
        let tuple = Tuple { src: loopback(true), dst: loopback(false), src_port: 1, dst_port: 2 };
        let to = Tuple { src_port: 3, ..tuple };
        for (place, way) in [(0, 0), (0, 2), (2, 0), (2, 1)] {
            let key = NatKey { tuple, protocol: 6, place, padding: 0 };
            let entry = NatValue { tuple: to, way, ..NatValue::default() };
            let back = other_half(&key, &entry);
            let answer = NatValue { tuple: tuple.reversed(), way, ..NatValue::default() };
            assert_eq!(other_half(&back, &answer), key);
        }
    }
}
