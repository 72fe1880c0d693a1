//! Typed objects, Kubernetes-shaped: parsed, never merely validated. A value of one of these types obeys its
//! kind's rules.

mod key;
mod types;

pub use key::{Kind, NamespacedName, ObjectKey};
pub use types::*;
