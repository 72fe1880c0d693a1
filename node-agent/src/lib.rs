//! Programs the kernel of one node, creates pods and serves their identity.
pub mod kernel;
