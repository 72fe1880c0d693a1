//! Join tokens, as the store knows them: never the secret, only its hash.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a token admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPurpose {
    /// Another cluster.
    Peer,
    /// A node agent; when named, of that node only.
    Node(Option<String>),
    /// A control-plane replica.
    Replica,
}

impl TokenPurpose {
    /// Whether a token made for `self` admits a caller that wants `wanted`.
    pub fn admits(&self, wanted: &TokenPurpose) -> bool {
        match (self, wanted) {
            (TokenPurpose::Node(None), TokenPurpose::Node(_)) => true,
            (TokenPurpose::Node(Some(bound)), TokenPurpose::Node(Some(node))) => bound == node,
            (ours, theirs) => ours == theirs,
        }
    }
}

impl fmt::Display for TokenPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenPurpose::Peer => f.write_str("a peer cluster"),
            TokenPurpose::Node(None) => f.write_str("any node"),
            TokenPurpose::Node(Some(node)) => write!(f, "the node {node}"),
            TokenPurpose::Replica => f.write_str("a replica"),
        }
    }
}

/// A token that was handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it admits.
    pub purpose: TokenPurpose,
    /// SHA-256 of the secret, lower-case hexadecimal: a snapshot or a backup admits nobody.
    pub secret_sha256: String,
    /// Seconds since 1970. From then on it is refused.
    pub expires_unix: u64,
    /// Who used it, once it is used.
    pub used_by: Option<String>,
    /// A replica that it admits does not vote until it is promoted.
    #[serde(default)]
    pub learner: bool,
    /// Who had it made, in words. When that is an administrator whose certificates are withdrawn, it goes too.
    #[serde(default)]
    pub asked_by: String,
}
