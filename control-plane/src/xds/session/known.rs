//! What a client has of one resource, as far as the server can know.

use std::sync::Arc;

use crate::xds::Encoded;

/// What the client has of one name.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// It was sent this, and has accepted it or is about to answer.
    Sent(Arc<Encoded>),
    /// It said that it holds this version from an earlier stream.
    Told(Arc<str>),
    /// It was told that there is no such resource.
    Absent,
    /// It refused the last version. It runs on the accepted one, if that is known, or on parts of the refused one.
    Uncertain(Option<Arc<Encoded>>),
}

impl Known {
    /// The version that need not be sent.
    pub(super) fn version(&self) -> Option<&Arc<str>> {
        match self {
            Self::Sent(resource) => Some(&resource.version),
            Self::Told(version) => Some(version),
            Self::Absent | Self::Uncertain(_) => None,
        }
    }

    /// Contents that the client is known to have accepted, if this state was settled.
    pub(super) fn contents(&self) -> Option<&Arc<Encoded>> {
        match self {
            Self::Sent(resource) | Self::Uncertain(Some(resource)) => Some(resource),
            Self::Told(_) | Self::Absent | Self::Uncertain(None) => None,
        }
    }

    /// Whether the client may hold something under this name.
    pub(super) fn may_hold(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}
