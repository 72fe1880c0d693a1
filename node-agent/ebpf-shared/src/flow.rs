//! Flow events: what the kernel tells of each new flow and of each packet that it drops.

use crate::Addr;

/// Why a packet was dropped; [`Reason::Forwarded`] if it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    Forwarded = 0,
    /// The endpoint's class denies by default and no rule allowed it.
    DefaultDeny = 1,
    /// A rule denies it.
    PolicyDenied = 2,
    /// The interface belongs to no known endpoint.
    UnknownEndpoint = 3,
    /// The endpoint's class is not in place yet.
    PolicyMissing = 4,
    /// The pod sent from an address that is not its own.
    SpoofedSource = 5,
    /// Sent to the pod, but not to its address.
    WrongDestination = 6,
    /// A piece of a datagram whose first piece was not seen, that cannot be judged, or that is for a proxy: only whole
    /// datagrams can be handed to one.
    Fragment = 7,
    /// Truncated, or lengths or flags that contradict each other.
    Malformed = 8,
    /// Neither TCP, UDP, SCTP nor the family's ICMP.
    UnsupportedProtocol = 9,
    /// Neither IPv4, IPv6 nor ARP.
    UnsupportedEthertype = 10,
    /// An IPv6 extension header that leads elsewhere (routing), hides what follows (ESP), stands where it must
    /// not, or is one too many.
    ExtensionHeader = 11,
    /// An ICMP message other than echo and errors: router advertisements and redirects among them.
    UnsupportedIcmp = 12,
    /// An ICMP error about a flow that is not known, or an echo reply that nobody asked for.
    UnrelatedIcmp = 13,
    /// No room to remember the connection, so that its replies could not be told from new flows.
    ConntrackFull = 14,
    /// Not dropped, although policy denies it: the policy, or the endpoint, is only audited.
    Audited = 15,
    /// Came through the tunnel from somebody who has no such pod, or was to go into it from somebody who is not here.
    TunnelSource = 16,
    /// Came through the tunnel for somebody who is not here, or was to go into it to no node that is known.
    TunnelTarget = 17,
    /// The service has no backend.
    NoBackend = 18,
    /// The service may not be asked from this address (`loadBalancerSourceRanges`).
    SourceRange = 19,
    /// No port, or no room, to translate the packet by.
    NatExhausted = 20,
    /// Not dropped: handed to a proxy of this node, or an answer of one.
    Redirected = 21,
    /// Only a proxy of this node may have it, and there is no such proxy, or it has no such connection.
    ProxyGone = 22,
}

impl Reason {
    pub const ALL: [Self; 23] = [
        Self::Forwarded,
        Self::DefaultDeny,
        Self::PolicyDenied,
        Self::UnknownEndpoint,
        Self::PolicyMissing,
        Self::SpoofedSource,
        Self::WrongDestination,
        Self::Fragment,
        Self::Malformed,
        Self::UnsupportedProtocol,
        Self::UnsupportedEthertype,
        Self::ExtensionHeader,
        Self::UnsupportedIcmp,
        Self::UnrelatedIcmp,
        Self::ConntrackFull,
        Self::Audited,
        Self::TunnelSource,
        Self::TunnelTarget,
        Self::NoBackend,
        Self::SourceRange,
        Self::NatExhausted,
        Self::Redirected,
        Self::ProxyGone,
    ];
    /// One more than the greatest number.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The reason with this number; `None` for numbers of a newer format.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether the packet was not dropped.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Forwarded | Self::Audited | Self::Redirected)
    }

    /// The ruling that a conntrack entry remembers: a number that can't be there counts as a denial.
    #[inline(always)]
    pub const fn from_entry(number: u8) -> Self {
        match number {
            0 => Self::Forwarded,
            1 => Self::DefaultDeny,
            4 => Self::PolicyMissing,
            15 => Self::Audited,
            21 => Self::Redirected,
            22 => Self::ProxyGone,
            _ => Self::PolicyDenied,
        }
    }

    /// The name that flow logs and metrics print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "FORWARDED",
            Self::DefaultDeny => "DEFAULT_DENY",
            Self::PolicyDenied => "POLICY_DENIED",
            Self::UnknownEndpoint => "UNKNOWN_ENDPOINT",
            Self::PolicyMissing => "POLICY_MISSING",
            Self::SpoofedSource => "SPOOFED_SOURCE",
            Self::WrongDestination => "WRONG_DESTINATION",
            Self::Fragment => "FRAGMENT",
            Self::Malformed => "MALFORMED",
            Self::UnsupportedProtocol => "UNSUPPORTED_PROTOCOL",
            Self::UnsupportedEthertype => "UNSUPPORTED_ETHERTYPE",
            Self::ExtensionHeader => "EXTENSION_HEADER",
            Self::UnsupportedIcmp => "UNSUPPORTED_ICMP",
            Self::UnrelatedIcmp => "UNRELATED_ICMP",
            Self::ConntrackFull => "CONNTRACK_FULL",
            Self::Audited => "AUDITED",
            Self::TunnelSource => "TUNNEL_SOURCE",
            Self::TunnelTarget => "TUNNEL_TARGET",
            Self::NoBackend => "NO_BACKEND",
            Self::SourceRange => "SOURCE_RANGE",
            Self::NatExhausted => "NAT_EXHAUSTED",
            Self::Redirected => "REDIRECTED",
            Self::ProxyGone => "PROXY_GONE",
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    Forwarded = 0,
    Dropped = 1,
    /// Forwarded, although a policy in audit mode would have dropped it.
    Audit = 2,
    /// Handed to a proxy of this node.
    Redirected = 3,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Forwarded, Self::Dropped, Self::Audit, Self::Redirected];

    /// That of a packet with this reason.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Forwarded => Self::Forwarded,
            Reason::Audited => Self::Audit,
            Reason::Redirected => Self::Redirected,
            _ => Self::Dropped,
        }
    }

    /// The verdict with this number; `None` for numbers of a newer format.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The name that flow logs print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "FORWARDED",
            Self::Dropped => "DROPPED",
            Self::Audit => "AUDIT",
            Self::Redirected => "REDIRECTED",
        }
    }
}

/// One record of the `EVENTS` ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEvent {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// `::` where the frame was not IP.
    pub src: Addr,
    pub dst: Addr,
    /// 0 where the verdict did not need it.
    pub src_identity: u32,
    pub dst_identity: u32,
    /// The rule or default deny that decided, as the agent numbered it; 0: none.
    pub policy_id: u32,
    /// Which address of a service the client asked at ([`crate::ServiceKey::told`]), where it was translated on this node;
    /// 0: none that the kernel knows of.
    pub service: u32,
    /// Bytes of the frame, with its Ethernet header.
    pub bytes: u32,
    pub src_port: u16,
    pub dst_port: u16,
    /// Of an ICMP message: its type in the upper byte, its code in the lower one.
    pub icmp: u16,
    pub protocol: u8,
    /// A [`crate::Direction`]: seen from the pod.
    pub direction: u8,
    /// A [`Verdict`].
    pub verdict: u8,
    /// A [`Reason`].
    pub reason: u8,
    /// 1: the packet answers a flow that the other side began.
    pub is_reply: u8,
    pub tcp_flags: u8,
    /// [`FlowEvent::FROM_TUNNEL`], [`FlowEvent::ERROR`].
    pub flags: u8,
    pub padding: u8,
}

impl FlowEvent {
    /// The packet came through the overlay, and its source's identity with it.
    pub const FROM_TUNNEL: u8 = 1;
    /// The packet was an ICMP error: addresses, protocol and ports are those of the packet that it is about.
    pub const ERROR: u8 = 2;
}

/// What flows are told of together when there are many: key of `FLOWS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKind {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The peer's; 0 where the verdict did not need it.
    pub identity: u32,
    pub policy_id: u32,
    /// The port that the packet goes to.
    pub port: u16,
    pub protocol: u8,
    /// A [`crate::Direction`].
    pub direction: u8,
    /// A [`Verdict`].
    pub verdict: u8,
    /// A [`Reason`].
    pub reason: u8,
    pub is_reply: u8,
    pub padding: u8,
}

impl FlowKind {
    /// The kind that an event is of.
    #[inline(always)]
    pub const fn of(event: &FlowEvent) -> Self {
        let is_egress = event.direction == crate::Direction::Egress as u8;
        Self {
            ifindex: event.ifindex,
            identity: if is_egress { event.dst_identity } else { event.src_identity },
            policy_id: event.policy_id,
            port: event.dst_port,
            protocol: event.protocol,
            direction: event.direction,
            verdict: event.verdict,
            reason: event.reason,
            is_reply: event.is_reply,
            padding: 0,
        }
    }
}

/// How much of a kind was told, per CPU: value of `FLOWS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCell {
    /// When the current window began, nanoseconds of `CLOCK_MONOTONIC`.
    pub window: u64,
    /// Suppressed since the kind is known; never goes down.
    pub packets: u64,
    pub bytes: u64,
    /// Events in the current window.
    pub told: u32,
    pub padding: u32,
}

impl FlowCell {
    /// Length of a window, nanoseconds.
    pub const WINDOW: u64 = 100_000_000;
    /// Events of one kind that one CPU emits within a window. More are only counted.
    pub const BURST: u32 = 64;

    /// Of a kind that was not known.
    #[inline(always)]
    pub const fn first(now: u64) -> Self {
        Self { window: now, packets: 0, bytes: 0, told: 1, padding: 0 }
    }

    /// Whether one more is told. If not, it is counted.
    #[inline(always)]
    pub fn admit(&mut self, now: u64, bytes: u64) -> bool {
        if now.saturating_sub(self.window) >= Self::WINDOW {
            self.window = now;
            self.told = 0;
        }
        if self.told < Self::BURST {
            self.told += 1;
            return true;
        }
        self.packets += 1;
        self.bytes += bytes;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_event_has_no_implicit_padding() {
        assert_eq!(size_of::<FlowEvent>(), 8 + 4 + 2 * 16 + 5 * 4 + 3 * 2 + 8 + 2);
        assert_eq!(align_of::<FlowEvent>(), 8);
        assert_eq!(size_of::<FlowKind>(), 3 * 4 + 2 + 6);
        assert_eq!(size_of::<FlowCell>(), 3 * 8 + 2 * 4);
    }

    #[test]
    fn verdicts_are_numbered_by_their_place() {
        for (number, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, number);
            assert_eq!(Verdict::from_number(number as u8), Some(verdict));
        }
        assert_eq!(Verdict::from_number(9), None);
    }

    #[test]
    fn a_burst_is_told_and_what_comes_after_it_in_the_window_is_counted() {
        let mut cell = FlowCell::first(1_000);
        let mut told = 1;
        for n in 1..1_000_u64 {
            told += u32::from(cell.admit(1_000 + n, 60));
        }
        assert_eq!((told, cell.packets), (FlowCell::BURST, 1_000 - u64::from(FlowCell::BURST)));
        assert_eq!(cell.bytes, cell.packets * 60);
        assert!(cell.admit(1_000 + FlowCell::WINDOW, 60), "the next window has a burst of its own");
        assert_eq!(cell.packets, 1_000 - u64::from(FlowCell::BURST), "and nothing is forgotten");
        // Another CPU's clock may be a little behind.
        assert!(cell.admit(0, 60));
    }

    #[test]
    fn reasons_are_numbered_by_their_place() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert_eq!(Reason::from_number(number as u8), Some(reason));
        }
        assert_eq!(Reason::from_number(Reason::COUNT as u8), None);
    }
}
