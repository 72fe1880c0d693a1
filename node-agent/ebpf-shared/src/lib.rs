//! What the kernel programs and the node agent have to agree on: the keys and values of the maps, and
//! the verdict itself.
//!
//! The verdict ([`decide`]) is generic over the maps it reads, so the kernel programs, the agent's
//! emulation and the tests run the *same* lines. Only parsing a frame and touching a socket are the
//! kernel's own.
//!
//! Conventions: addresses are [`Addr`], both families alike (network order, as on the wire); ports are `u16` in host order,
//! except where a longest-prefix key needs them big-endian; every struct is `repr(C)` with explicit
//! padding, because a hash key with an undefined byte is a key that is never found again.
//!
//! A change to any struct here changes the format of pinned maps: raise [`limits::FORMAT`].
#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod addr;
pub mod balance;
pub mod conntrack;
pub mod decide;
pub mod endpoint;
pub mod epochs;
pub mod flow;
pub mod fragment;
pub mod host;
pub mod identity;
pub mod limits;
pub mod maglev;
pub mod metrics;
pub mod nat;
pub mod overlay;
pub mod packet;
pub mod policy;
pub mod redirect;
pub mod service;

pub use addr::{Addr, Ip4};
pub use balance::{Choice, ServiceMaps, balance};
pub use conntrack::{ConnEntry, ConnKey, Conntrack};
pub use decide::{Decision, decide};
pub use endpoint::Endpoint;
pub use flow::{FlowCell, FlowEvent, FlowKind, Reason, Verdict};
pub use metrics::Metric;
pub use packet::{Kind, Packet};
pub use policy::{
    Direction, PeerKey, PolicyMaps, Question, RuleKey, RuleRef, RuleValue, Ruling, Sides, Unnamed, judge,
};
pub use redirect::{Led, NoProxies, Proxies, Proxy};
pub use service::{Backend, CapturedKey, Netns, ReverseKey, ServiceKey, ServiceValue, SockAddr};

#[cfg(feature = "user")]
mod pod;
