//! JWT-SVIDs: tokens that say who bears them and for whom they are meant.
//!
//! Source: <https://github.com/spiffe/spiffe/blob/main/standards/JWT-SVID.md>, with RFC 7515 (signature), RFC 7517 (keys) and
//! RFC 7519 (claims). One algorithm is spoken: ES256. Moments are arguments.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use mesh_model::{
    identity::{SpiffeError, SpiffeId, TrustDomain},
    limits::is_jwt_key,
};
use rcgen::PublicKeyData;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{Error, csr::new_key};

/// Seconds that a token is valid unless told otherwise.
pub const TTL_SECONDS: u64 = 300;
/// Most that may be asked for.
pub const MAX_TTL_SECONDS: u64 = 3_600;
/// Most audiences of one token.
pub const MAX_AUDIENCES: usize = 16;
/// Bytes of one audience.
pub const MAX_AUDIENCE: usize = 256;
/// Bytes of a token that is looked at. Ours have at most some 6,000.
pub const MAX_TOKEN: usize = 8 * 1_024;
pub use mesh_model::limits::{JWT_KEY_BYTES, MAX_JWT_KEYS};

/// Why a token, or what is asked of one, is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum JwtError {
    #[error("audience: one at least is needed")]
    NoAudience,
    #[error("audience: {0} are more than {MAX_AUDIENCES}")]
    Audiences(usize),
    #[error("audience: {0:?} is not 1 to {MAX_AUDIENCE} visible ASCII characters")]
    Audience(String),
    #[error("ttl_seconds: {0} is more than {MAX_TTL_SECONDS}")]
    Ttl(u64),
    #[error("svid: {0} bytes are more than {MAX_TOKEN}")]
    TooLong(usize),
    #[error("svid: it is no JWT: {0}")]
    Malformed(String),
    #[error("svid: header {field} is {value:?}, expected {expected}")]
    Header { field: &'static str, value: String, expected: &'static str },
    #[error("svid: claim {0} is missing or of a wrong type")]
    Claim(&'static str),
    #[error("svid: claim sub: {0}")]
    Subject(SpiffeError),
    #[error("svid: {0} is of a trust domain that is not trusted here")]
    UnknownTrustDomain(SpiffeId),
    #[error("svid: {0} names a trust domain, not an identity in it")]
    NoPath(SpiffeId),
    #[error("svid: its key {kid:?} is none of {trust_domain}")]
    UnknownKey { kid: String, trust_domain: TrustDomain },
    #[error("svid: its signature is not of the key that it names")]
    Signature,
    #[error("svid: it has expired {0} s ago")]
    Expired(u64),
    #[error("svid: it is not meant for {0:?}")]
    NotForAudience(String),
}

/// A key that signs tokens. It is in memory only: nothing here writes it anywhere.
pub struct JwtKey {
    key: EncodingKey,
    public: JwtPublicKey,
}

impl std::fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKey").field("id", &self.public.id()).finish_non_exhaustive()
    }
}

/// The public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtPublicKey(Vec<u8>);

impl JwtPublicKey {
    /// Takes a point of P-256, uncompressed.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn from_point(point: &[u8]) -> Result<Self, Error> {
        if !is_jwt_key(point) {
            return Err(Error::Key(format!("{} bytes are no uncompressed point of P-256", point.len())));
        }
        Ok(Self(point.to_vec()))
    }

    /// As [`JwtPublicKey::from_point`] takes it.
    pub fn point(&self) -> &[u8] {
        &self.0
    }

    /// What a token's header calls it (`kid`): SHA-256 of the point, hexadecimal.
    pub fn id(&self) -> String {
        Sha256::digest(&self.0).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn coordinates(&self) -> [String; 2] {
        let (x, y) = self.0.split_at(JWT_KEY_BYTES / 2 + 1);
        [x.get(1..).unwrap_or_default(), y].map(|half| URL_SAFE_NO_PAD.encode(half))
    }

    fn jwk(&self) -> Value {
        let [x, y] = self.coordinates();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "jwt-svid", "kid": self.id(), "x": x, "y": y
        })
    }
}

/// Keys as a JWK set (RFC 7517), as SPIFFE bundles have them.
pub fn jwk_set<'a>(keys: impl IntoIterator<Item = &'a JwtPublicKey>) -> String {
    let keys: Vec<Value> = keys.into_iter().map(JwtPublicKey::jwk).collect();
    json!({ "keys": keys }).to_string()
}

/// Refuses what no token is to be made for.
///
/// # Errors
/// Names the audience, or how many there are.
pub fn check_audiences<T: AsRef<str>>(audiences: &[T]) -> Result<(), JwtError> {
    if audiences.is_empty() {
        return Err(JwtError::NoAudience);
    }
    if audiences.len() > MAX_AUDIENCES {
        return Err(JwtError::Audiences(audiences.len()));
    }
    audiences.iter().try_for_each(|audience| check_audience(audience.as_ref()))
}

fn check_audience(audience: &str) -> Result<(), JwtError> {
    let fine = (1..=MAX_AUDIENCE).contains(&audience.len()) && audience.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(()) } else { Err(JwtError::Audience(audience.chars().take(80).collect())) }
}

impl JwtKey {
    /// A new one.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, Error> {
        let pair = new_key()?;
        let public = JwtPublicKey::from_point(pair.der_bytes())?;
        Ok(Self { key: EncodingKey::from_ec_der(&pair.serialize_der()), public })
    }

    /// The public half.
    pub fn public(&self) -> &JwtPublicKey {
        &self.public
    }

    /// A token for `id`, valid from now on; 0 seconds: [`TTL_SECONDS`]. Says also when it ends, in seconds since 1970.
    ///
    /// # Errors
    /// What is wrong with the audiences or the time, or signing failed.
    pub fn sign<T: AsRef<str>>(
        &self,
        id: &SpiffeId,
        audiences: &[T],
        ttl_seconds: u64,
        now_unix: u64,
    ) -> Result<(String, u64), JwtError> {
        check_audiences(audiences)?;
        if ttl_seconds > MAX_TTL_SECONDS {
            return Err(JwtError::Ttl(ttl_seconds));
        }
        if id.path().is_empty() {
            return Err(JwtError::NoPath(id.clone()));
        }
        let seconds = if ttl_seconds == 0 { TTL_SECONDS } else { ttl_seconds };
        let end = now_unix.saturating_add(seconds);
        let audiences: Vec<&str> = audiences.iter().map(AsRef::as_ref).collect();
        let claims = json!({ "sub": id.to_string(), "aud": audiences, "iat": now_unix, "exp": end });
        let header = Header { kid: Some(self.public.id()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|error| JwtError::Malformed(error.to_string()))?;
        Ok((token, end))
    }
}

/// A token that was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    /// Who bears it.
    pub id: SpiffeId,
    /// All that it claims.
    pub claims: Map<String, Value>,
}

/// Verifies a token: its form, its key, which must be one of the bearer's own trust domain, its signature, its time and
/// that it is meant for `audience`. `keys` are those of a trust domain, if it is trusted.
///
/// # Errors
/// The first thing that is wrong, in this order.
pub fn verify(
    token: &str,
    audience: &str,
    now_unix: u64,
    keys: impl FnOnce(&TrustDomain) -> Option<Vec<JwtPublicKey>>,
) -> Result<JwtSvid, JwtError> {
    check_audience(audience)?;
    if token.len() > MAX_TOKEN {
        return Err(JwtError::TooLong(token.len()));
    }
    let malformed = |error: jsonwebtoken::errors::Error| JwtError::Malformed(error.to_string());
    let header = jsonwebtoken::decode_header(token).map_err(malformed)?;
    if header.alg != Algorithm::ES256 {
        let value = format!("{:?}", header.alg);
        return Err(JwtError::Header { field: "alg", value, expected: "ES256" });
    }
    // JWT-SVID section 2.3: if it is there, it is one of these.
    if let Some(kind) = header.typ.as_deref().filter(|kind| !matches!(*kind, "JWT" | "JOSE")) {
        let value = kind.chars().take(80).collect();
        return Err(JwtError::Header { field: "typ", value, expected: "JWT or JOSE" });
    }
    // RFC 7515 section 4.1.11: whoever does not know what is critical refuses it.
    if let Some(critical) = header.crit {
        let value = critical.join(",").chars().take(80).collect();
        return Err(JwtError::Header { field: "crit", value, expected: "none" });
    }
    // Read to find the key, and read again once the signature is known to be right.
    let claimed: Map<String, Value> =
        jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(malformed)?;
    let subject = claimed.get("sub").and_then(Value::as_str).ok_or(JwtError::Claim("sub"))?;
    let id = SpiffeId::parse(subject).map_err(JwtError::Subject)?;
    if id.path().is_empty() {
        return Err(JwtError::NoPath(id));
    }
    let known = keys(id.trust_domain()).ok_or_else(|| JwtError::UnknownTrustDomain(id.clone()))?;
    let kid: String = header.kid.unwrap_or_default().chars().take(80).collect();
    let Some(key) = known.iter().find(|key| key.id() == kid) else {
        return Err(JwtError::UnknownKey { kid, trust_domain: id.trust_domain().clone() });
    };
    let [x, y] = key.coordinates();
    let key = DecodingKey::from_ec_components(&x, &y).map_err(malformed)?;
    // What is claimed is looked at below, with the moment that was given.
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation);
    let claims = decoded.map_err(|_| JwtError::Signature)?.claims;
    let end = claims.get("exp").and_then(seconds).ok_or(JwtError::Claim("exp"))?;
    if now_unix >= end {
        return Err(JwtError::Expired(now_unix - end));
    }
    let meant = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
        _ => return Err(JwtError::Claim("aud")),
    };
    if !meant {
        return Err(JwtError::NotForAudience(audience.to_owned()));
    }
    Ok(JwtSvid { id, claims })
}

/// A NumericDate (RFC 7519, section 2); what is before a second is left out.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|at| *at >= 0.0).map(|at| at as u64))
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
