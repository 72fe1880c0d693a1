//! What a service that decides is asked and told (`envoy.filters.http.ext_authz`), as plain data.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Serialize;

use super::{Fraction, GrpcTarget};
use crate::config::Text;

/// `ExtAuthz`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtAuthz {
    /// Who is asked.
    pub service: AuthzService,
    /// Whether requests pass when it cannot be asked.
    pub allow_on_failure: bool,
    /// Whether the application is told of that.
    pub tell_allowed: bool,
    /// Whether it is shown the body.
    pub body: Option<AuthzBody>,
    /// Whether the route is looked for again when it has changed the request.
    pub clear_route_cache: bool,
    /// HTTP status when it cannot be asked.
    pub status_on_error: u16,
    /// What other filters have found out that it is told.
    pub metadata_namespaces: Vec<String>,
    /// Which requests it is asked about.
    pub enabled: Fraction,
    /// Whether it is shown the client's certificate.
    pub include_peer_certificate: bool,
    /// Whether it is told the server name of the TLS handshake.
    pub include_tls_session: bool,
    /// Names of headers that it is shown. `None`: all, or over HTTP only the few that it is always shown.
    pub allowed_headers: Option<Vec<Text>>,
    /// Names of headers that it is not shown, whatever else says.
    pub disallowed_headers: Vec<Text>,
    /// Whether it is shown the bytes of headers as they are.
    pub raw_headers: bool,
    /// Whether what it tells is told to other filters.
    pub take_metadata: bool,
    /// Most bytes of its refusals.
    pub max_denied_body: Option<usize>,
}

/// How it is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`.
    Grpc(GrpcTarget),
    /// The request, without its body, at another place.
    Http(Box<AuthzHttp>),
}

/// `HttpService`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuthzHttp {
    /// Where it is.
    pub cluster: Arc<str>,
    /// For the answer.
    pub timeout: Duration,
    /// Goes before the path.
    pub path_prefix: String,
    /// Takes the place of the path.
    pub path_override: Option<String>,
    /// Names of headers that it is shown, besides the few that it is always shown.
    pub allowed: Vec<Text>,
    /// Headers that it is shown besides.
    #[serde(skip)]
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Names of its headers that go to the application.
    pub upstream: Vec<Text>,
    /// The same, besides what is there already.
    pub upstream_append: Vec<Text>,
    /// Names of headers of refusals that go to the client. `None`: all.
    pub client: Option<Vec<Text>>,
    /// Names of headers of permissions that go to the client.
    pub client_on_success: Vec<Text>,
}

/// `BufferSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuthzBody {
    /// Bytes that it is shown at most.
    pub max: usize,
    /// Whether larger bodies are shown in part; otherwise they are refused.
    pub partial: bool,
    /// Whether it is bytes, not text.
    pub as_bytes: bool,
}

/// `ExtAuthzPerRoute`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzRoute {
    /// It is not asked.
    Disabled,
    /// It is asked.
    Check {
        /// What it is told besides; of all levels together.
        context: BTreeMap<String, String>,
        /// In place of the filter's: `Some(None)` for none.
        body: Option<Option<AuthzBody>>,
    },
}

impl AuthzRoute {
    /// This, and what the level above says besides.
    pub fn over(&self, above: &Self) -> Self {
        match (self, above) {
            (Self::Check { context, body }, Self::Check { context: former, body: former_body }) => {
                let mut all = former.clone();
                all.extend(context.iter().map(|(key, value)| (key.clone(), value.clone())));
                Self::Check { context: all, body: body.or(*former_body) }
            }
            _ => self.clone(),
        }
    }
}
