//! Join tokens: one line of text that carries everything a newcomer needs to find and to recognise a cluster,
//! and a secret that proves that it was invited.
//!
//! A token is `isthmus1.` and the base64url of its JSON and a checksum. The checksum is against slips of the
//! mouse, not against forgers: what a token grants is decided by the record that the issuing cluster keeps
//! under the token's id, with the *hash* of the secret (`mesh-store` admits each token once, before its
//! expiry, and for its purpose only).

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::names::{is_dns_label, is_dns_name, is_host_port, shown};

/// What every token begins with; the digit is the version of the format.
pub const PREFIX: &str = "isthmus1.";
/// Longest token that is looked at, in characters.
pub const MAX_TOKEN: usize = 8 * 1024;
/// Most doors in a token: replicas of one cluster.
pub const MAX_DOORS: usize = 16;
/// Bytes of the checksum: the beginning of SHA-256 over the JSON.
const CHECKSUM: usize = 4;

/// What a token admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Another cluster joins this one.
    Peer,
    /// A node agent registers.
    Node,
    /// A control-plane replica is added.
    Replica,
}

impl Purpose {
    /// As `--for` and the wire spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Node => "node",
            Self::Replica => "replica",
        }
    }

    /// Reads what [`Purpose::as_str`] wrote.
    ///
    /// # Errors
    /// [`TokenError::Field`] naming the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        [Self::Peer, Self::Node, Self::Replica]
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or_else(|| TokenError::field("purpose", text, "is not peer, node or replica"))
    }

    /// What to do with a token of this purpose.
    fn instead(self) -> &'static str {
        match self {
            Self::Peer => "run 'clustermesh join <token>' on the cluster that joins",
            Self::Node => "give it to 'node-agent run --join-file'",
            Self::Replica => "give it to 'control-plane run --join-file'",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Some other text.
    #[error(
        "this is no join token: it does not begin with {PREFIX}; copy what 'clustermesh token create' printed"
    )]
    NotAToken,
    /// Of another version of the format.
    #[error("the join token is of a newer format ({0}); use a release that knows it")]
    Version(String),
    /// Too long, or the checksum is wrong.
    #[error("the join token is damaged; copy it again, whole and on one line")]
    Damaged,
    /// A part has a value that no cluster would write.
    #[error("the join token's {field} {value:?} {problem}")]
    Field {
        /// The JSON name.
        field: &'static str,
        /// What stands there, shortened.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its time is over.
    #[error("the join token expired {0} s ago; make a new one with 'clustermesh token create'")]
    Expired(u64),
    /// Made for something else.
    #[error("the join token is for a {made_for}, not for a {wanted}; {}", .made_for.instead())]
    WrongPurpose {
        /// What the token admits.
        made_for: Purpose,
        /// What it was used for.
        wanted: Purpose,
    },
}

impl TokenError {
    fn field(field: &'static str, value: &str, problem: &'static str) -> Self {
        Self::Field { field, value: shown(value), problem }
    }
}

/// A join token, decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What it admits, as the token says; the issuing cluster's record decides.
    pub purpose: Purpose,
    /// The only node that it admits; `None`: any.
    pub node: Option<String>,
    /// The issuing cluster.
    pub cluster: String,
    /// Public name of the token: letters and digits.
    pub id: String,
    /// The proof. Not in `Debug`.
    pub secret: [u8; 32],
    /// host:port of the issuing cluster's mesh doors.
    pub doors: Vec<String>,
    /// SHA-256 of the issuing cluster's root certificate (DER): how the newcomer recognises it.
    pub root_sha256: [u8; 32],
    /// Seconds since 1970.
    pub expires_unix: u64,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("purpose", &self.purpose)
            .field("cluster", &self.cluster)
            .field("id", &self.id)
            .field("doors", &self.doors)
            .field("expires_unix", &self.expires_unix)
            .finish_non_exhaustive()
    }
}

/// The JSON inside. Unknown fields are ignored, so that a later release can add hints.
#[derive(Serialize, Deserialize)]
struct Wire {
    purpose: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    node: Option<String>,
    cluster: String,
    id: String,
    secret: String,
    doors: Vec<String>,
    root: String,
    expires: u64,
}

impl JoinToken {
    /// The token as one line of text.
    ///
    /// # Errors
    /// A field that [`JoinToken::decode`] would refuse: a token is never made that nobody can use.
    pub fn encode(&self) -> Result<String, TokenError> {
        self.validate()?;
        let wire = Wire {
            purpose: self.purpose.as_str().to_owned(),
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            id: self.id.clone(),
            secret: URL_SAFE_NO_PAD.encode(self.secret),
            doors: self.doors.clone(),
            root: URL_SAFE_NO_PAD.encode(self.root_sha256),
            expires: self.expires_unix,
        };
        // Strings and numbers only: there is no value that JSON can't hold.
        let mut bytes = serde_json::to_vec(&wire).map_err(|_| TokenError::Damaged)?;
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum[..CHECKSUM]);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        if text.len() > MAX_TOKEN { Err(TokenError::Damaged) } else { Ok(text) }
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// Says which part is wrong. Whether the token is still good, only the issuing cluster knows.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Damaged);
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            let (head, rest) = text.split_once('.').unwrap_or((text, ""));
            let digits = head.strip_prefix("isthmus").unwrap_or("");
            let newer = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !rest.is_empty();
            return Err(if newer { TokenError::Version(shown(head)) } else { TokenError::NotAToken });
        };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (json, checksum) =
            bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM)).ok_or(TokenError::Damaged)?;
        if Sha256::digest(json)[..CHECKSUM] != *checksum {
            return Err(TokenError::Damaged);
        }
        let wire: Wire = serde_json::from_slice(json).map_err(|_| TokenError::Damaged)?;
        let token = Self {
            purpose: Purpose::parse(&wire.purpose)?,
            node: wire.node,
            cluster: wire.cluster,
            id: wire.id,
            secret: bytes32("secret", &wire.secret)?,
            doors: wire.doors,
            root_sha256: bytes32("root", &wire.root)?,
            expires_unix: wire.expires,
        };
        token.validate()?;
        Ok(token)
    }

    fn validate(&self) -> Result<(), TokenError> {
        let alphanumeric = self.id.bytes().all(|b| b.is_ascii_alphanumeric());
        if !(1..=64).contains(&self.id.len()) || !alphanumeric {
            return Err(TokenError::field("id", &self.id, "is not 1 to 64 letters and digits"));
        }
        if !is_dns_label(&self.cluster) {
            return Err(TokenError::field("cluster", &self.cluster, "is no DNS label"));
        }
        if let Some(node) = self.node.as_deref().filter(|n| !is_dns_name(n)) {
            return Err(TokenError::field("node", node, "is no DNS name"));
        }
        if self.doors.is_empty() || self.doors.len() > MAX_DOORS {
            let count = self.doors.len().to_string();
            return Err(TokenError::field("doors", &count, "is no number from 1 to 16"));
        }
        match self.doors.iter().find(|d| !is_host_port(d)) {
            Some(door) => Err(TokenError::field("doors", door, "is not host:port")),
            None => Ok(()),
        }
    }

    /// SHA-256 of the secret in lower-case hexadecimal: what the issuing cluster stores and compares.
    pub fn secret_sha256(&self) -> String {
        secret_sha256(&self.secret)
    }

    /// What its bearer can see of a token that will be refused, before it knocks.
    ///
    /// # Errors
    /// Made for something else, or expired.
    pub fn check(&self, wanted: Purpose, now_unix: u64) -> Result<(), TokenError> {
        if self.purpose != wanted {
            return Err(TokenError::WrongPurpose { made_for: self.purpose, wanted });
        }
        if self.expires_unix <= now_unix {
            return Err(TokenError::Expired(now_unix - self.expires_unix));
        }
        Ok(())
    }
}

/// SHA-256 of a secret in lower-case hexadecimal.
pub fn secret_sha256(secret: &[u8; 32]) -> String {
    Sha256::digest(secret).iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes32(field: &'static str, text: &str) -> Result<[u8; 32], TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        // The value is not shown: it may be a secret.
        .ok_or_else(|| TokenError::field(field, "(hidden)", "is not 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken {
            purpose: Purpose::Peer,
            node: None,
            cluster: "west".to_owned(),
            id: "4f1c".to_owned(),
            secret: [7; 32],
            doors: vec!["192.0.2.1:9443".to_owned(), "west.example:9443".to_owned()],
            root_sha256: [9; 32],
            expires_unix: 1_790_000_000,
        }
    }

    /// A token with other JSON but a right checksum.
    fn forged(change: impl Fn(&mut serde_json::Value)) -> String {
        let text = token().encode().unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
        let mut value = serde_json::from_slice(&bytes[..bytes.len() - CHECKSUM]).unwrap();
        change(&mut value);
        let mut bytes = serde_json::to_vec(&value).unwrap();
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum[..CHECKSUM]);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    #[test]
    fn a_token_reads_back_as_what_it_was_made_from() {
        let text = token().encode().unwrap();
        assert!(text.starts_with(PREFIX));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{text}");
        assert_eq!(JoinToken::decode(&format!("  {text}\n")).unwrap(), token());
        let node = JoinToken { purpose: Purpose::Node, node: Some("west-n1".to_owned()), ..token() };
        assert_eq!(JoinToken::decode(&node.encode().unwrap()).unwrap(), node);
    }

    #[test]
    fn every_slip_of_the_mouse_is_noticed() {
        let text = token().encode().unwrap();
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(JoinToken::decode(&wrong).is_err(), "character {at}");
            assert!(JoinToken::decode(&text[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(JoinToken::decode(PREFIX), Err(TokenError::Damaged));
        assert_eq!(JoinToken::decode(&"x".repeat(MAX_TOKEN + 1)), Err(TokenError::Damaged));
    }

    #[test]
    fn other_texts_and_newer_formats_are_told_apart() {
        assert_eq!(JoinToken::decode(""), Err(TokenError::NotAToken));
        assert_eq!(JoinToken::decode("eyJhbGciOi.J9"), Err(TokenError::NotAToken));
        assert_eq!(JoinToken::decode("isthmus.abc"), Err(TokenError::NotAToken));
        assert_eq!(JoinToken::decode("isthmus12.abc"), Err(TokenError::Version("isthmus12".to_owned())));
    }

    #[test]
    fn values_that_no_cluster_would_write_are_refused_by_name() {
        for (field, value) in [
            ("purpose", serde_json::json!("admin")),
            ("cluster", serde_json::json!("We st")),
            ("id", serde_json::json!("../x")),
            ("secret", serde_json::json!("c2hvcnQ")),
            ("root", serde_json::json!("")),
            ("doors", serde_json::json!([])),
            ("doors", serde_json::json!(["nowhere"])),
            ("doors", serde_json::json!(vec!["192.0.2.1:1"; 17])),
            ("node", serde_json::json!("a/b")),
        ] {
            let error = JoinToken::decode(&forged(|v| v[field] = value.clone())).unwrap_err();
            assert!(matches!(&error, TokenError::Field { field: named, .. } if *named == field), "{error}");
            assert!(!error.to_string().contains("c2hvcnQ"));
        }
        assert_eq!(JoinToken::decode(&forged(|v| v["expires"] = "soon".into())), Err(TokenError::Damaged));
        assert!(JoinToken::decode(&forged(|v| v["hint"] = "of a later release".into())).is_ok());
    }

    #[test]
    fn a_token_for_something_else_or_too_old_is_named_before_the_door_is_tried() {
        let wrong = token().check(Purpose::Node, 0).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "the join token is for a peer, not for a node; \
             run 'clustermesh join <token>' on the cluster that joins"
        );
        assert_eq!(token().check(Purpose::Peer, 1_790_000_005), Err(TokenError::Expired(5)));
        assert_eq!(token().check(Purpose::Peer, 1_789_999_999), Ok(()));
    }

    #[test]
    fn the_secret_is_neither_in_debug_output_nor_in_its_hash() {
        let debug = format!("{:?}", token());
        assert!(!debug.contains("7, 7") && !debug.contains("secret"), "{debug}");
        assert_eq!(token().secret_sha256().len(), 64);
        assert_ne!(token().secret_sha256(), secret_sha256(&[8; 32]));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoder_panic(body in "\\PC{0,200}", junk in "[A-Za-z0-9_-]{0,200}") {
            for text in [body.clone(), format!("{PREFIX}{body}"), format!("{PREFIX}{junk}")] {
                prop_assert!(JoinToken::decode(&text).is_err());
            }
        }

        #[test]
        fn every_token_that_can_be_made_can_be_read(
            secret: [u8; 32],
            expires_unix: u64,
            id in "[a-zA-Z0-9]{1,64}",
            cluster in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
            doors in prop::collection::vec("[a-z]{1,20}:[1-9][0-9]{0,3}", 1..=16),
        ) {
            let made = JoinToken { secret, expires_unix, id, cluster, doors, ..token() };
            prop_assert_eq!(JoinToken::decode(&made.encode().unwrap()).unwrap(), made);
        }
    }
}
