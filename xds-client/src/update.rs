//! What a handler gets.

use xds_proto::{Message, Name, google::protobuf::Any};

/// One resource of an [`Update`].
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// Opaque: compare for equality only.
    pub version: String,
    /// The message itself.
    pub resource: Any,
}

impl Resource {
    /// The message as its type.
    pub fn decode<M: Message + Default + Name>(&self) -> Result<M, DecodeError> {
        if self.resource.type_url != M::type_url() {
            return Err(DecodeError::Type {
                name: self.name.clone(),
                expected: M::type_url(),
                found: self.resource.type_url.clone(),
            });
        }
        M::decode(self.resource.value.as_slice()).map_err(|e| DecodeError::Malformed {
            name: self.name.clone(),
            type_url: M::type_url(),
            reason: e.to_string(),
        })
    }
}

/// Why a resource could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The packed message is of another type than asked for.
    #[error("resource {name:?} is a {found}, expected a {expected}")]
    Type {
        /// Name of the resource.
        name: String,
        /// Type URL that was asked for.
        expected: String,
        /// Type URL that it has.
        found: String,
    },
    /// The bytes are no such message.
    #[error("resource {name:?} is no valid {type_url}: {reason}")]
    Malformed {
        /// Name of the resource.
        name: String,
        /// Type URL that it has.
        type_url: String,
        /// The decoder's words.
        reason: String,
    },
}

/// One response of the control plane: the difference to what was known before.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Type of every resource in it.
    pub type_url: String,
    /// New or changed resources, in the order in which they were sent.
    pub added: Vec<Resource>,
    /// Names that no longer exist, or that were asked for and don't exist (yet).
    pub removed: Vec<String>,
    /// Identifies the response on its stream.
    pub nonce: String,
    /// The revision that the control plane served from; for people, not for comparison.
    pub system_version: String,
}

impl Update {
    /// What is needed to acknowledge this update once it has been given away.
    pub fn receipt(&self) -> Receipt {
        Receipt {
            type_url: self.type_url.clone(),
            nonce: self.nonce.clone(),
            versions: self.added.iter().map(|r| (r.name.clone(), r.version.clone())).collect(),
            removed: self.removed.clone(),
            revision: self.system_version.parse().ok(),
        }
    }
}

/// Names and versions of an [`Update`], without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) versions: Vec<(String, String)>,
    pub(crate) removed: Vec<String>,
    pub(crate) revision: Option<u64>,
}

impl Receipt {
    /// Of what is not part of the configuration.
    pub(crate) fn without_revision(self) -> Self {
        Self { revision: None, ..self }
    }
}
