//! Flows that policy lets only through a proxy of this node.
//!
//! A rule names a *slot*, and `PROXIES` says where the slot's proxy listens: at a port of the loopback addresses, where
//! nobody gets by the network. The program at the pod's door gives the packet to the proxy's socket as it is (`bpf_sk_assign`),
//! so the proxy sees the pod's address and the one that the pod asked for, and answers from there. A socket is a
//! proxy's only if it bears [`MARK`], which takes `CAP_NET_ADMIN` to set: whoever else gets hold of the port after
//! a proxy has died is never handed anything. Without such a socket the packet is dropped.
//!
//! Marks on packets end where a packet leaves the node's network namespace, so no pod can have set one.

use crate::{Addr, Packet, SockAddr};

/// Of all sockets of proxies (`SO_MARK`), and so of what they send. Answers to pods pass by it.
pub const MARK: u32 = 0xa300_0000;
/// On packets that end here, whatever their destination: the upper byte is what the routing rule looks at.
pub const TO_PROXY: u32 = 0xa200_0000;
/// The same, of answers to what a proxy asked in a pod's name, on the last part of their way: to netfilter they belong to
/// no connection.
pub const TO_PROXY_UNTRACKED: u32 = TO_PROXY | 1;

/// No proxy: what is to go there goes nowhere.
pub const NO_SLOT: u16 = 0;
/// The agent's DNS proxy.
pub const DNS_SLOT: u16 = 1;
/// The name that stands for [`DNS_SLOT`]; others can't register by it.
pub const DNS_NAME: &str = "dns";

/// Value of `PROXIES`; the key is a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Proxy {
    /// [`name_hash`] of its name, so that it has the same slot after a restart of the agent.
    pub name: u64,
    /// Port on 127.0.0.1; 0: it takes no IPv4.
    pub v4: u16,
    /// Port on `::1`; 0: it takes no IPv6.
    pub v6: u16,
    /// [`Self::ALIVE`], [`Self::TCP`], [`Self::UDP`].
    pub flags: u32,
}

impl Proxy {
    /// It is there.
    pub const ALIVE: u32 = 1;
    pub const TCP: u32 = 2;
    pub const UDP: u32 = 4;

    /// The port at which it takes packets like this one; 0: it takes none.
    #[inline(always)]
    pub const fn port(&self, packet: &Packet) -> u16 {
        let transport = match packet.protocol {
            crate::packet::protocol::TCP => Self::TCP,
            crate::packet::protocol::UDP => Self::UDP,
            _ => return 0,
        };
        if self.flags & Self::ALIVE == 0 || self.flags & transport == 0 {
            return 0;
        }
        if packet.dst.is_v4() { self.v4 } else { self.v6 }
    }
}

/// A service that pods reach by a proxy: policy is about its backends, and so about one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Led {
    pub backend: SockAddr,
    /// The proxy's; [`NO_SLOT`]: there is no such service.
    pub slot: u16,
}

impl Led {
    /// No such service.
    pub const NOWHERE: Self = Self { backend: SockAddr::new(Addr::UNSPECIFIED, 0), slot: NO_SLOT };

    /// As the program that finds the service tells it to the one that judges: in the packet's control block, where the
    /// first word is 0 for [`Led::NOWHERE`].
    #[inline(always)]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.backend.addr.words();
        [(self.slot as u32) << 16 | self.backend.port as u32, a, b, c, d]
    }

    #[inline(always)]
    pub const fn of_words([first, a, b, c, d]: [u32; 5]) -> Self {
        let addr = Addr::from_words([a, b, c, d]);
        Self { backend: SockAddr::new(addr, first as u16), slot: (first >> 16) as u16 }
    }
}

/// 64-bit FNV-1a.
pub const fn name_hash(name: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// The sockets of proxies. In the kernel these are looked up in the node's network namespace.
pub trait Proxies {
    /// Gives a packet from a pod to the proxy of a slot: to the connection that it belongs to, else, unless it
    /// answers something, to the listener. False: there is nobody to give it to.
    fn take(&mut self, packet: &Packet, slot: u16, is_reply: bool) -> bool;

    /// Gives a packet to a pod to the proxy that waits for it as an answer, having asked in the pod's name. False: none
    /// does.
    fn take_answer(&mut self, packet: &Packet) -> bool;
}

/// Where there are no proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoProxies;

impl Proxies for NoProxies {
    fn take(&mut self, _: &Packet, _: u16, _: bool) -> bool {
        false
    }

    fn take_answer(&mut self, _: &Packet) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Kind, protocol};
    use crate::{Addr, Ip4};

    #[test]
    fn a_proxy_takes_what_it_listens_for_while_it_is_alive() {
        let packet = |addr: Addr, protocol| Packet {
            src: addr,
            dst: addr,
            src_port: 1,
            dst_port: 2,
            protocol,
            tcp_flags: 0,
            kind: Kind::Plain,
        };
        let (v4, v6) = (Addr::v4(Ip4::LOOPBACK), Addr::from_words([1, 2, 3, 4]));
        let proxy = Proxy { name: 1, v4: 40, v6: 60, flags: Proxy::ALIVE | Proxy::TCP };
        assert_eq!(proxy.port(&packet(v4, protocol::TCP)), 40);
        assert_eq!(proxy.port(&packet(v6, protocol::TCP)), 60);
        for nothing in [protocol::UDP, protocol::SCTP, protocol::ICMP] {
            assert_eq!(proxy.port(&packet(v4, nothing)), 0);
        }
        assert_eq!(Proxy { flags: Proxy::TCP, ..proxy }.port(&packet(v4, protocol::TCP)), 0);
        assert_eq!(size_of::<Proxy>(), 8 + 2 + 2 + 4);
    }

    #[test]
    fn what_one_program_tells_the_other_is_what_that_hears() {
        let led = Led { backend: SockAddr::new(Addr::from_words([1, 2, 3, 4]), 0xfedc), slot: 0x8001 };
        assert_eq!(Led::of_words(led.words()), led);
        assert_eq!(Led::NOWHERE.words()[0], 0);
    }

    #[test]
    fn marks_are_told_apart_by_their_upper_byte() {
        let upper = [MARK, TO_PROXY, crate::overlay::mark(300)].map(|mark| mark >> 24);
        assert!(upper.iter().enumerate().all(|(at, mark)| !upper[..at].contains(mark)));
        assert_eq!(TO_PROXY_UNTRACKED >> 24, TO_PROXY >> 24);
    }
}
