//! The replicated control plane of one cluster.
