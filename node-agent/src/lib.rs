//! Programs the kernel of one node, creates pods and serves their identity.
//!
//! One direction: [`subscribe`] takes what the control plane tells, [`desired`] (pure) computes what the kernel
//! is to hold and the writes that lead there, [`maps`] carries them out with [`kernel`]. [`engine`] is where
//! that meets the pods that [`cni`] makes. Beside it, [`identity`] and [`relay`] serve the proxies of the pods,
//! and [`flows`] tells what the kernel decided.

pub mod agent;
pub mod bootstrap;
pub mod cleanup;
pub mod cni;
pub mod cni_plugin;
pub mod config;
pub mod desired;
pub mod dns;
pub mod engine;
pub mod flows;
pub mod grpc;
pub mod health;
pub mod host;
pub mod identity;
pub mod kernel;
pub mod local;
pub mod made;
pub mod maps;
pub mod maps_cli;
pub mod masquerade;
pub mod metrics;
pub mod migrate;
pub mod names;
mod persist;
pub mod redirect;
pub mod relay;
pub mod reset;
pub mod routes;
pub mod status;
pub mod stop;
pub mod subscribe;
pub mod tunnel;
