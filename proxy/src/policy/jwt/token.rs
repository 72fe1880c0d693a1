//! A token, taken apart.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::{Provider, Status};

/// A token that is well formed; nothing is known yet of whether it is true.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// As it came.
    pub text: String,
    /// Position of the dot before the signature.
    signed: usize,
    /// The head.
    pub head: Map<String, Value>,
    /// The claims.
    pub claims: Map<String, Value>,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// `iss`; empty where there is none.
    pub issuer: String,
    subject: Option<String>,
    audiences: Vec<String>,
    not_before: Option<u64>,
    expires: Option<u64>,
}

fn object(part: &str, base64: Status, json: Status) -> Result<Map<String, Value>, Status> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| base64)?;
    serde_json::from_slice(&bytes).map_err(|_| json)
}

fn text(map: &Map<String, Value>, key: &str, wrong: Status) -> Result<Option<String>, Status> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong),
    }
}

/// Seconds since 1970, of which fractions are dropped.
fn time(map: &Map<String, Value>, key: &str, wrong: Status) -> Result<Option<u64>, Status> {
    match map.get(key) {
        None => Ok(None),
        Some(value) => match (value.as_u64(), value.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            (None, Some(seconds)) if (0.0..1e15).contains(&seconds) => Ok(Some(seconds as u64)),
            _ => Err(wrong),
        },
    }
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// What is malformed.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut parts = text.split('.');
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadFormat);
        };
        let signed = text.len() - signature.len() - 1;
        let head = object(head, Status::HeaderBase64, Status::HeaderJson)?;
        let name = head.get("alg").and_then(Value::as_str).ok_or(Status::HeaderAlg)?;
        let algorithm = Algorithm::from_str(name).map_err(|_| Status::Algorithm)?;
        // Keys that also sign would have to be secret, and key sets are not.
        if matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
            return Err(Status::Algorithm);
        }
        let kid = self::text(&head, "kid", Status::HeaderKid)?;
        let claims = object(payload, Status::PayloadBase64, Status::PayloadJson)?;
        let issuer = self::text(&claims, "iss", Status::PayloadIss)?.unwrap_or_default();
        let subject = self::text(&claims, "sub", Status::PayloadSub)?;
        time(&claims, "iat", Status::PayloadIat)?;
        let not_before = time(&claims, "nbf", Status::PayloadNbf)?;
        let expires = time(&claims, "exp", Status::PayloadExp)?;
        let audiences = match claims.get("aud") {
            None => vec![],
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => all
                .iter()
                .map(|one| one.as_str().map(str::to_owned).ok_or(Status::PayloadAud))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(Status::PayloadAud),
        };
        BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| Status::SignatureBase64)?;
        Ok(Self {
            text: text.to_owned(),
            signed,
            head,
            claims,
            algorithm,
            kid,
            issuer,
            subject,
            audiences,
            not_before,
            expires,
        })
    }

    /// What is signed, and the signature.
    pub(super) fn signed(&self) -> (&str, &str) {
        (self.text.get(..self.signed).unwrap_or(""), self.text.get(self.signed + 1..).unwrap_or(""))
    }

    /// The claims in base64url, as they came.
    pub fn payload(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or("")
    }

    /// Whether its claims are what a provider wants, but for the signature.
    pub(super) fn fits(
        &self,
        provider: &Provider,
        audiences: Option<&[String]>,
        now: SystemTime,
    ) -> Result<(), Status> {
        if !provider.issuer.is_empty() && provider.issuer != self.issuer {
            return Err(Status::UnknownIssuer);
        }
        if let Some(subjects) = &provider.subjects
            && !self.subject.as_ref().is_some_and(|subject| subjects.matches(subject))
        {
            return Err(Status::Verification);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let skew = provider.clock_skew.as_secs();
        if self.not_before.is_some_and(|time| time > now.saturating_add(skew)) {
            return Err(Status::NotYetValid);
        }
        match self.expires {
            Some(time) if now > time.saturating_add(skew) => return Err(Status::Expired),
            Some(time)
                if provider.max_lifetime.is_some_and(|max| time.saturating_sub(now) > max.as_secs()) =>
            {
                return Err(Status::Verification);
            }
            None if provider.require_expiration || provider.max_lifetime.is_some() => {
                return Err(Status::Verification);
            }
            Some(_) | None => {}
        }
        let wanted = audiences.unwrap_or(&provider.audiences);
        let common = |one: &String| wanted.iter().any(|other| audience(one) == audience(other));
        if wanted.is_empty() || self.audiences.iter().any(common) { Ok(()) } else { Err(Status::Audience) }
    }
}

/// Without scheme and last slash, as in Envoy.
fn audience(text: &str) -> &str {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    rest.strip_suffix('/').unwrap_or(rest)
}
