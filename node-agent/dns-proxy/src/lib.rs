//! The DNS proxy of a node: pods ask it without knowing, because the kernel hands it their queries.
//!
//! Policies allow names (`toFQDNs`), packets have addresses. So an answer is held until the kernel lets the pod to the
//! addresses in it: whoever has the answer can connect at once. What no policy lets a pod ask for is refused.
//!
//! * [`message`] reads and writes what the wire carries, [`rules`] says who may ask for what, [`exchange`] decides on
//!   each query and each answer. All of these are pure.
//! * [`serve`] moves the bytes: transparent sockets (`IP_TRANSPARENT`), so that a pod sees the answer come from the
//!   server that it asked.
//! * [`Gate`] and [`Sight`] are the rest of the node, as this crate needs it.

pub mod cluster;
mod exchange;
mod gate;
pub mod message;
pub mod rules;
pub mod serve;

pub use exchange::{Answered, Ask, answered, ask, released};
pub use gate::{Event, Gate, GateError, Outcome, Seen, Sight, Way};
pub use rules::{Peers, Rule, Rules, Transport};
