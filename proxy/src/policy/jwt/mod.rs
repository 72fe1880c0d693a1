//! JSON Web Tokens (RFC 7519): where requests carry them, what they must fulfil, and what a request is told for want of
//! one. Pure: keys that come from elsewhere are handed in.

mod judge;
mod keys;
mod locate;
mod status;
mod token;

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use serde::{Serialize, Serializer};

pub use judge::{Judgement, Keys, judge};
pub use keys::{KeyError, KeySet};
pub use locate::{Found, Location, find, remove};
pub use status::Status;
pub use token::Token;

use crate::{
    config::Text,
    route::{RequestView, RouteMatch},
};

/// `JwtAuthentication`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtAuthn {
    /// In the order of their names.
    pub providers: Vec<Provider>,
    /// The first that matches is taken; a request that none matches needs no token.
    pub rules: Vec<JwtRule>,
    /// For routes to name.
    pub named: std::collections::BTreeMap<String, Requirement>,
    /// Whether CORS preflight requests need no token.
    pub bypass_cors_preflight: bool,
    /// Whether a refusal says no more than its status.
    pub strip_failure_response: bool,
}

/// What a request of some kind must carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtRule {
    /// Of which kind.
    pub matches: RouteMatch,
    /// `None`: nothing.
    pub requires: Option<Requirement>,
}

/// `JwtRequirement`. Conversion limits its depth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// A token of this provider.
    Provider {
        /// Position of the provider.
        provider: usize,
        /// In place of the provider's own.
        audiences: Option<Vec<String>>,
    },
    /// One of them.
    Any(Vec<Self>),
    /// All of them.
    All(Vec<Self>),
    /// No token, or a good one of any provider.
    AllowMissing,
    /// Good tokens are made use of, others are overlooked.
    AllowMissingOrFailed,
}

/// `JwtProvider`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provider {
    /// As it is named in requirements.
    pub name: String,
    /// `iss` of its tokens. Empty: any.
    pub issuer: String,
    /// One of them must be in `aud`. Empty: any, or none.
    pub audiences: Vec<String>,
    /// What `sub` must fit.
    pub subjects: Option<Text>,
    /// Whether `exp` must be there.
    pub require_expiration: bool,
    /// Longest time until `exp`.
    pub max_lifetime: Option<Duration>,
    /// Where to look for tokens.
    pub locations: Vec<Location>,
    /// Whether a good token stays in the request.
    pub forward: bool,
    /// Gets the payload, in base64url as it came.
    #[serde(serialize_with = "header")]
    pub payload_header: Option<HeaderName>,
    /// Whether that is padded.
    pub pad_payload_header: bool,
    /// Key under which the claims are told to other filters.
    pub payload_in_metadata: Option<String>,
    /// Key under which the head of the token is told to other filters.
    pub header_in_metadata: Option<String>,
    /// Claims that are told as lists of their words.
    pub space_delimited: Vec<String>,
    /// How far clocks may be apart.
    pub clock_skew: Duration,
    /// Headers that get claims.
    pub claims: Vec<ClaimHeader>,
    /// Whether the route is looked for again when anything has been told.
    pub clear_route_cache: bool,
    /// Where its keys come from.
    pub keys: KeySource,
}

/// `JwtClaimToHeader`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClaimHeader {
    #[allow(missing_docs)]
    #[serde(serialize_with = "header_name")]
    pub header: HeaderName,
    /// Keys of the payload, inwards.
    pub path: Vec<String>,
}

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// The resource itself.
    Local(Arc<KeySet>),
    /// An HTTP server.
    Remote(Arc<RemoteKeys>),
}

/// `RemoteJwks`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct RemoteKeys {
    /// Where the server is.
    pub cluster: Arc<str>,
    /// `host` of the request.
    pub authority: String,
    /// Path and query of the request.
    pub path: String,
    /// For one request.
    pub timeout: Duration,
    /// How long keys count.
    pub cache: Duration,
    /// Requests before it is given up.
    pub attempts: u32,
    /// They are asked for before anybody needs them.
    pub ahead: bool,
    /// After a failure nothing is asked for this long.
    pub pause: Duration,
}

impl JwtAuthn {
    /// What a request must carry, as far as no route says otherwise.
    pub fn requirement(&self, request: &RequestView<'_>) -> Option<&Requirement> {
        // No rule has a share of requests, which the number would be for.
        self.rules.iter().find(|rule| rule.matches.matches(request, 0))?.requires.as_ref()
    }

    /// Headers that only this filter sets: a client's are taken away.
    pub fn reserved(&self) -> impl Iterator<Item = &HeaderName> {
        self.providers.iter().flat_map(|p| p.payload_header.iter().chain(p.claims.iter().map(|c| &c.header)))
    }
}

fn header<S: Serializer>(name: &Option<HeaderName>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_ref().map(HeaderName::as_str).serialize(serializer)
}

fn header_name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
