//! Permission for aya to copy the shared types byte by byte.

use crate::*;

macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {
        $(
            // SAFETY: repr(C) or repr(transparent) over integers, without implicit padding (the layout
            // tests beside each type prove it), and every bit pattern is a valid value.
            unsafe impl aya::Pod for $ty {}
        )+
    };
}

pod!(
    Addr,
    Endpoint,
    Sides,
    Unnamed,
    PeerKey,
    RuleKey,
    RuleValue,
    ConnKey,
    ConnEntry,
    ServiceKey,
    ServiceValue,
    Backend,
    service::Slots,
    service::AffinityKey,
    service::AffinityValue,
    service::SourceKey,
    service::AnswererKey,
    service::ReverseValue,
    nat::NatKey,
    nat::NatValue,
    nat::NodeConfig,
    ReverseKey,
    SockAddr,
    Netns,
    CapturedKey,
    Metric,
    FlowEvent,
    FlowKind,
    FlowCell,
    overlay::Hop,
    Proxy,
);
