//! The way out: from the model's plain data to Envoy's types and our own. Pure; nothing here decides what a
//! client may have.

mod admitted;
pub mod agent;
mod callers;
pub mod cluster;
pub mod endpoint;
pub mod grpc;
#[cfg(test)]
mod large_classes;
pub mod listener;
mod node_proxy;
pub mod peer;
mod rbac;
mod reader;
pub mod route;
mod scoped;
pub mod secret;
pub mod service;
pub mod sets;
mod shared;
pub mod tls;
mod wire;

pub use wire::AGENT_CLUSTER;
