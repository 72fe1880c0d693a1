//! xDS for every data plane: one session state machine (pure), and the gRPC server around it.
//!
//! * [`resource`]: what can be sent; encoded once, shared by all streams.
//! * [`kinds`]: what the order of types is and why.
//! * [`heartbeat`]: proof that a client still takes configuration.
//! * [`session`]: one stream's half of the protocol, messages in, messages out. No I/O, clock or randomness.
//! * [`csds`]: what each client was sent, has accepted or refused, for administrators.
//! * [`load`]: LRS, what clients report of their load.
//! * [`views`]: what a client may have; implemented by whoever compiles the model.
//! * [`server`]: tonic services; [`subscribers`]: who is connected and what they have acknowledged.

pub mod csds;
pub mod heartbeat;
pub mod kinds;
pub mod load;
pub mod resource;
pub mod server;
pub mod session;
pub mod subscribers;
pub mod translate;
pub mod views;

pub use resource::{Encoded, ResourceSet, TypeResources};
pub use server::XdsServer;
pub use session::Session;
pub use subscribers::{Health, Lagging, Subscriber, Subscribers};
pub use views::{Client, PeerIdentity, ProxyKind, Views};
