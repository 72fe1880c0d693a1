//! What is subscribed to.

use std::collections::BTreeSet;

/// The name that stands for "every resource of this type", in the protocol's own spelling.
pub const WILDCARD: &str = "*";

/// The resources of one type that a subscriber wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Whatever the control plane decides that this client is to have. Always sent as an explicit `*`.
    Wildcard,
    /// These and no others. Empty means: nothing yet, names follow by [`SubscribeCommand`](crate::SubscribeCommand).
    Only(BTreeSet<String>),
}

impl Names {
    /// The given names and no others.
    pub fn only<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Only(names.into_iter().map(Into::into).collect())
    }
}

/// A type and the names of it that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Full type URL, as [`xds_proto::type_url`] gives it.
    pub type_url: String,
    /// The wanted resources.
    pub names: Names,
}

impl Subscription {
    /// Everything of a type.
    pub fn wildcard(type_url: impl Into<String>) -> Self {
        Self { type_url: type_url.into(), names: Names::Wildcard }
    }

    /// Named resources of a type.
    pub fn only<S: Into<String>>(type_url: impl Into<String>, names: impl IntoIterator<Item = S>) -> Self {
        Self { type_url: type_url.into(), names: Names::only(names) }
    }
}
