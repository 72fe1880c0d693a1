//! Protobuf types and nothing else: Envoy's API (from a crate) re-exported, and our own.
//!
//! No conversion to the model lives here: see `control-plane/src/xds/translate` for the way out and
//! `proxy/src/config` for the way in.

pub use envoy_types::pb::{envoy, google, xds};
pub use prost::{Message, Name};

/// Our own packages, one module per `.proto` package.
pub mod isthmus {
    /// What a node agent subscribes to.
    pub mod agent {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.agent.v1");
        }
    }
    /// The door for people and tools.
    pub mod admin {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.admin.v1");
        }
    }
    /// Certificates, registration and reports of nodes.
    pub mod bootstrap {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.bootstrap.v1");
        }
    }
    /// The certificate authority and the nodes, for administrators.
    pub mod ca {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.ca.v1");
        }
    }
    /// Cluster to cluster.
    pub mod federation {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.federation.v1");
        }
    }
    /// The agent's unix socket.
    pub mod local {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.local.v1");
        }
    }
    /// Replica to replica.
    pub mod raft {
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("isthmus.raft.v1");
        }
    }
}

/// Hubble's interface to flows, with its own packages, names and numbers.
pub mod hubble {
    #[allow(missing_docs, clippy::all)]
    pub mod flow {
        tonic::include_proto!("flow");
    }
    #[allow(missing_docs, clippy::all)]
    pub mod observer {
        tonic::include_proto!("observer");
    }
    #[allow(missing_docs, clippy::all)]
    pub mod peer {
        tonic::include_proto!("peer");
    }
    #[allow(missing_docs, clippy::all)]
    pub mod relay {
        tonic::include_proto!("relay");
    }
}

/// The SPIFFE Workload API, whose messages have no package.
#[allow(missing_docs, clippy::all)]
pub mod spiffe {
    tonic::include_proto!("_");
}

/// The type URL of a message, as xDS spells it: `type.googleapis.com/<package>.<Message>`.
pub fn type_url<M: Name>() -> String {
    M::type_url()
}

/// Packs a message for a resource list or a typed config.
pub fn to_any<M: Name>(message: &M) -> google::protobuf::Any {
    google::protobuf::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_those_that_xds_clients_send() {
        assert_eq!(
            type_url::<envoy::config::listener::v3::Listener>(),
            "type.googleapis.com/envoy.config.listener.v3.Listener"
        );
        assert_eq!(
            type_url::<isthmus::agent::v1::LocalEndpoint>(),
            "type.googleapis.com/isthmus.agent.v1.LocalEndpoint"
        );
    }
}
