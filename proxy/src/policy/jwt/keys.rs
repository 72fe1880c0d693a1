//! Key sets (RFC 7517).

use jsonwebtoken::{Algorithm, DecodingKey, crypto, jwk};
use serde::{Serialize, Serializer};
use serde_json::Value;
use thiserror::Error;

use super::{Status, Token};

/// Most keys of a set.
const MAX_KEYS: usize = 100;

/// Public keys.
#[derive(Debug, Clone)]
pub struct KeySet {
    source: Vec<u8>,
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
struct Key {
    kid: Option<String>,
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Why something is no key set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not JSON, or no list `keys` in it.
    #[error("is no JSON object with a list of keys")]
    Malformed,
    /// More than 100.
    #[error("has {0} keys, which are more than 100")]
    TooMany(usize),
    /// None that could verify a signature.
    #[error("has no RSA, EC (P-256, P-384) or Ed25519 key")]
    None,
}

impl KeySet {
    /// Reads a set. Keys that cannot be used here are left out.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn parse(source: &[u8]) -> Result<Self, KeyError> {
        let value: Value = serde_json::from_slice(source).map_err(|_| KeyError::Malformed)?;
        let list = value.get("keys").and_then(Value::as_array).ok_or(KeyError::Malformed)?;
        if list.len() > MAX_KEYS {
            return Err(KeyError::TooMany(list.len()));
        }
        let keys: Vec<_> = list.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(KeyError::None);
        }
        Ok(Self { source: source.to_owned(), keys })
    }

    /// Whether one of the keys signed the token.
    pub(super) fn verify(&self, token: &Token) -> Result<(), Status> {
        let (message, signature) = token.signed();
        let mut known = false;
        for key in &self.keys {
            let other_kid = matches!((&key.kid, &token.kid), (Some(a), Some(b)) if a != b);
            let other_algorithm = key.algorithm.is_some_and(|algorithm| algorithm != token.algorithm);
            if other_kid || other_algorithm || key.key.family() != token.algorithm.family() {
                continue;
            }
            known = true;
            if crypto::verify(signature, message.as_bytes(), &key.key, token.algorithm) == Ok(true) {
                return Ok(());
            }
        }
        Err(if known { Status::Verification } else { Status::NoSuchKey })
    }
}

fn key(value: &Value) -> Option<Key> {
    let jwk: jwk::Jwk = serde_json::from_value(value.clone()).ok()?;
    if matches!(jwk.common.public_key_use, Some(jwk::PublicKeyUse::Encryption))
        || matches!(jwk.algorithm, jwk::AlgorithmParameters::OctetKey(_))
    {
        return None;
    }
    let algorithm = match value.get("alg").and_then(Value::as_str) {
        None => None,
        Some(name) => Some(name.parse().ok()?),
    };
    Some(Key { kid: jwk.common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(&jwk).ok()? })
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Serialize for KeySet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys.iter().map(|key| key.kid.as_deref()))
    }
}
