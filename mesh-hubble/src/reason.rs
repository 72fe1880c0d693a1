//! Why a packet was dropped, in Hubble's words.

use xds_proto::hubble::flow::DropReason;

/// Each of the kernel's reasons, by the name that it has in flows, and Hubble's nearest. docs/hubble.md has this table.
const REASONS: &[(&str, DropReason)] = &[
    ("FORWARDED", DropReason::Unknown),
    // Passes as well: a policy that is only audited would have dropped it.
    ("AUDITED", DropReason::Unknown),
    ("DEFAULT_DENY", DropReason::PolicyDenied),
    ("POLICY_DENIED", DropReason::PolicyDeny),
    ("UNKNOWN_ENDPOINT", DropReason::NoMatchingLocalContainerFound),
    ("POLICY_MISSING", DropReason::NoConfigurationAvailableToPerformPolicyDecision),
    ("SPOOFED_SOURCE", DropReason::InvalidSourceIp),
    ("WRONG_DESTINATION", DropReason::StaleOrUnroutableIp),
    ("FRAGMENT", DropReason::FirstLogicalDatagramFragmentNotFound),
    ("MALFORMED", DropReason::InvalidPacketDropped),
    ("UNSUPPORTED_PROTOCOL", DropReason::UnknownL4Protocol),
    ("UNSUPPORTED_ETHERTYPE", DropReason::UnsupportedL2Protocol),
    ("EXTENSION_HEADER", DropReason::InvalidIpv6ExtensionHeader),
    ("UNSUPPORTED_ICMP", DropReason::ForbiddenIcmpv6Message),
    ("UNRELATED_ICMP", DropReason::UnknownConnectionTrackingState),
    ("CONNTRACK_FULL", DropReason::CtMapInsertionFailed),
    ("TUNNEL_SOURCE", DropReason::UnknownSender),
    ("TUNNEL_TARGET", DropReason::NoTunnelOrEncapsulationEndpoint),
    ("NO_BACKEND", DropReason::ServiceBackendNotFound),
    ("SOURCE_RANGE", DropReason::DeniedByLbSrcRangeCheck),
    ("NAT_EXHAUSTED", DropReason::NoMappingForNatMasquerade),
    // Passes as well, by a proxy of the node.
    ("REDIRECTED", DropReason::Unknown),
    ("PROXY_GONE", DropReason::SocketLookupFailed),
];

/// Hubble's reason for one of the kernel's.
pub fn drop_reason(name: &str) -> DropReason {
    REASONS.iter().find(|(ours, _)| *ours == name).map_or(DropReason::Unknown, |(_, theirs)| *theirs)
}
