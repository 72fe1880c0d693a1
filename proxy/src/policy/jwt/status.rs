//! What is wrong with a token, in Envoy's words.

use thiserror::Error;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum Status {
    #[error("Jwt is missing")]
    Missing,
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    BadFormat,
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderBase64,
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    #[error("Jwt header [alg] field is required and must be a string")]
    HeaderAlg,
    #[error("Jwt header [alg] is not supported")]
    Algorithm,
    #[error("Jwt header [kid] field is not a string")]
    HeaderKid,
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadBase64,
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    #[error("Jwt payload [iss] field is not a string")]
    PayloadIss,
    #[error("Jwt payload [sub] field is not a string")]
    PayloadSub,
    #[error("Jwt payload [iat] field is not an integer")]
    PayloadIat,
    #[error("Jwt payload [nbf] field is not an integer")]
    PayloadNbf,
    #[error("Jwt payload [exp] field is not an integer")]
    PayloadExp,
    #[error("Jwt payload [aud] field is not a string or string list")]
    PayloadAud,
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureBase64,
    #[error("Jwt issuer is not configured")]
    UnknownIssuer,
    #[error("Jwt not yet valid")]
    NotYetValid,
    #[error("Jwt is expired")]
    Expired,
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    #[error("Jwks remote fetch is failed")]
    Fetch,
    #[error("Jwks doesn't have any valid public key")]
    NoKeys,
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoSuchKey,
    #[error("Jwt verification fails")]
    Verification,
}

impl Status {
    /// HTTP status of the refusal.
    pub fn code(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }

    /// How much it counts where one of several would have to hold: what is wrong with a token more than that it is
    /// somebody else's, and that more than that there is none.
    pub(super) fn weight(self) -> u8 {
        match self {
            Self::Missing => 0,
            Self::UnknownIssuer => 1,
            _ => 2,
        }
    }
}
