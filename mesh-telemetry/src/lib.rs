//! Metrics for Prometheus, as a replica and an agent serve them.
//!
//! A process has one [`prometheus_client::collector::Collector`] that looks at what it knows when somebody asks: nothing
//! here is on the way of a request. What a metric is, is for the process to say.
#![forbid(unsafe_code)]

pub mod page;
pub mod process;
pub mod serve;

pub use serve::{check_address, serve};
