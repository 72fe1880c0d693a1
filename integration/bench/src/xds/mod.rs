//! Propagation: one control plane of ours, many simulated clients in this process over real TLS, each of which
//! answers what it is sent, and a real Envoy; one endpoint changes, and the time counts until each has ACKed.
//!
//! * [`world`]: the replica, and the mesh that it serves.
//! * [`node`]: a registered node and its connections.
//! * [`stream`]: one delta stream on HTTP/2 itself: a client that costs little, for it shares the machine.
//! * [`swarm`]: all streams.
//! * [`envoy`]: Envoy, and where its answers are seen.
//! * [`measure`]: the rows.

mod envoy;
mod measure;
mod node;
mod stream;
mod swarm;
mod world;

pub use measure::{Plan, measure};
pub use node::Node;
pub use swarm::{Round, Shape, Swarm};
pub use world::{Size, World};
