//! What the control plane says of a data plane beside what the data plane says of itself: metadata of the node in
//! answers of `ClientStatusDiscoveryService`, read by the command line.

/// The client as it was authorized: `envoy~shop/web`.
pub const CLIENT: &str = "isthmus.client";
/// Replica that the client is connected to.
pub const REPLICA: &str = "isthmus.replica";
/// `sotw` or `delta`.
pub const PROTOCOL: &str = "isthmus.protocol";
/// Up to this revision the client has ACKed everything that concerns it.
pub const ACKED_REVISION: &str = "isthmus.acked_revision";

/// Metadata of the answer: the replicas that did not tell of their clients, by number, separated by commas.
pub const SILENT_REPLICAS: &str = "x-isthmus-silent-replicas";
