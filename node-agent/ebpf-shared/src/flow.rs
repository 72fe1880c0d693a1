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
    /// A piece of a datagram whose first piece was not seen, or that cannot be judged.
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
    /// The service has no backend.
    NoBackend = 15,
    /// The service may not be asked from this address (`loadBalancerSourceRanges`).
    SourceRange = 16,
    /// No port, or no room, to translate the packet by.
    NatExhausted = 17,
}

impl Reason {
    pub const ALL: [Self; 18] = [
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
        Self::NoBackend,
        Self::SourceRange,
        Self::NatExhausted,
    ];
    /// One more than the greatest number.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The reason with this number; `None` for numbers of a newer format.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The ruling that a conntrack entry remembers: a number that can't be there counts as a denial.
    #[inline(always)]
    pub const fn from_entry(number: u8) -> Self {
        match number {
            0 => Self::Forwarded,
            1 => Self::DefaultDeny,
            4 => Self::PolicyMissing,
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
            Self::NoBackend => "NO_BACKEND",
            Self::SourceRange => "SOURCE_RANGE",
            Self::NatExhausted => "NAT_EXHAUSTED",
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
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    /// A [`crate::Direction`]: seen from the pod.
    pub direction: u8,
    /// A [`Reason`].
    pub reason: u8,
    /// 1: the packet answers a flow that the other side began.
    pub is_reply: u8,
    pub tcp_flags: u8,
    pub padding: [u8; 7],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_event_has_no_implicit_padding() {
        assert_eq!(size_of::<FlowEvent>(), 8 + 4 + 2 * 16 + 3 * 4 + 2 * 2 + 5 + 7);
        assert_eq!(align_of::<FlowEvent>(), 8);
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
