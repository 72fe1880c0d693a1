//! Flows through Hubble's Observer API (`observer.Observer`), so that the `hubble` command line and UI read them.
//!
//! [`translate`] and [`Filters`] are pure: from a flow as agents report it to one of Hubble's, and which of those a
//! request is about. [`Observer`] is the service, over anything that has flows ([`Source`]): an agent has those of its
//! node, a control plane those of its cluster. Nothing here knows where a flow comes from.

mod filter;
pub mod names;
mod observer;
mod policy;
mod reason;
mod translate;

pub use filter::{FilterError, Filters};
pub use observer::{About, Live, LiveStream, Observer, Opened, Order, Source};
pub use policy::policy;
pub use reason::drop_reason;
pub use translate::{Labels, Naming, identity, translate};
