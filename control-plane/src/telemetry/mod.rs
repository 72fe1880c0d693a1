//! What the replica tells about itself and about the mesh: logs, flows.

pub mod flows;
