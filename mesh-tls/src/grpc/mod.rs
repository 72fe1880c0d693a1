//! gRPC over these TLS configurations, and over unix sockets. tonic's own TLS feature is not used: it knows
//! no SPIFFE IDs and reads certificates once.

mod connect;
mod cork;
mod incoming;
mod refusals;
mod unix;

pub use connect::{CONNECT_TIMEOUT, connect, connect_lazy, connect_unix};
pub use incoming::{
    HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS, PeerInfo, TlsIncoming, handshakes_refused,
    incoming, peer,
};
pub use unix::{bind_unix, incoming_unix, unix_peer};
