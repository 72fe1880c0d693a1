//! State in, mesh out.

mod model;

pub use model::*;
