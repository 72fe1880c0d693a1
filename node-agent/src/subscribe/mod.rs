//! What the control plane tells this node: parsed, kept, and remembered on disk.

mod cache;
mod client;
mod parse;
mod progress;
mod resources;
mod services;

pub use cache::Cache;
pub use client::{Subscriber, subscribe_for_ever};
pub use parse::ParseError;
pub use progress::{Progress, log_connection_for_ever};
pub use resources::{
    Address, Asked, Bundle, Class, Entity, Host, L7, Local, NodeRoute, Peer, Readiness, Resources, Rule,
    TYPES, Touched,
};
pub use services::{
    BackendState, Frontend, FrontendKind, HostPort, Named, Service, ServiceBackend, ServicePort,
};

#[cfg(test)]
pub(crate) use resources::tests::update as update_fixture;
