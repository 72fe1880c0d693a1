//! Whole proxies in this process, driven over real sockets: configuration by delta xDS on a unix socket, traffic on 127.0.0.1.

// Helpers of tests are no test functions, but may panic like them.
#![allow(clippy::unwrap_used)]

mod backend;
mod choice;
mod client;
mod command_line;
mod control;
mod convert;
mod documented;
mod edge;
mod envoy;
mod failover;
mod filters;
mod gateway;
mod http;
mod jwt;
mod limits;
mod load;
mod mtls;
mod origin;
mod overload;
mod rbac;
mod redirected;
mod refusal;
mod resources;
mod rfc9110;
mod rfc9112;
mod rfc9112_upstream;
mod rfc9113;
mod routing;
mod services;
mod store;
mod update;
mod upgrade;
mod upstream;
mod wire;
