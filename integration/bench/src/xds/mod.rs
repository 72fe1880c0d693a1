//! Propagation: one control plane of ours, many simulated clients in this process over real TLS, each of which
//! answers what it is sent; one endpoint changes, and the time counts until each has ACKed.

mod node;
mod swarm;
mod world;

pub use node::Node;
pub use swarm::{Round, Shape, Swarm};
pub use world::{Size, World};
