//! Where changes come from, besides administrators and peers: nodes, and Kubernetes.

pub mod kubernetes;
pub mod nodes;
