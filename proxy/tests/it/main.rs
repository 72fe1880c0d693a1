//! Whole proxies in this process, driven over real sockets: configuration by delta xDS on a unix socket, traffic on 127.0.0.1.

mod backend;
mod client;
mod control;
mod failover;
mod gateway;
mod http;
mod mtls;
mod refusal;
mod resources;
mod update;
