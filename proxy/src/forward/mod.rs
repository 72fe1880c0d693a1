//! The way of a request from a client's connection to an endpoint and back.

mod answer;
mod attempts;
mod body;
mod choice;
mod filters;
mod hops;
mod mirror;
mod path;
mod reply;
mod request;
mod rewrite;
mod scene;
mod service;
mod switch;
mod trust;

pub use body::ResponseBody;
pub use reply::{Reply, finish};
pub use request::{Head, Refusal, prepare};
pub use service::{Client, HttpChain, RouteSlot, handle};
pub use switch::{Switch, Tunnel};
