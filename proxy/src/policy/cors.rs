//! Which pages of other origins may ask (Fetch standard 3.2), as Envoy's filter answers for the application.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::{Serialize, Serializer};

use super::Fraction;
use crate::config::Text;

/// `CorsPolicy`. What is not set on a route is as its virtual host has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorsPolicy {
    /// Origins that may ask.
    pub origins: Vec<Text>,
    #[allow(missing_docs)]
    #[serde(serialize_with = "value")]
    pub allow_methods: Option<HeaderValue>,
    #[allow(missing_docs)]
    #[serde(serialize_with = "value")]
    pub allow_headers: Option<HeaderValue>,
    #[allow(missing_docs)]
    #[serde(serialize_with = "value")]
    pub expose_headers: Option<HeaderValue>,
    #[allow(missing_docs)]
    #[serde(serialize_with = "value")]
    pub max_age: Option<HeaderValue>,
    #[allow(missing_docs)]
    pub credentials: Option<bool>,
    #[allow(missing_docs)]
    pub private_network: Option<bool>,
    /// Whether preflight requests from other origins go to the application. Not set: they do.
    pub forward_not_matching: Option<bool>,
    /// For how many requests all of this counts.
    pub enabled: Fraction,
}

/// What a request of another origin gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Crossing {
    /// Nothing: it is none, or its origin may not ask.
    None,
    /// The application's answer gets these headers.
    Allow(HeaderMap),
    /// It is a question beforehand: these headers are the answer.
    Preflight(HeaderMap),
}

const PRIVATE: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE: HeaderName = HeaderName::from_static("access-control-allow-private-network");

fn value<S: Serializer>(value: &Option<HeaderValue>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes())).serialize(serializer)
}

impl CorsPolicy {
    /// This, and what it does not set as `above` has it.
    pub fn over(self, above: &Self) -> Self {
        let Self {
            origins,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            credentials,
            private_network,
            forward_not_matching,
            enabled,
        } = self;
        Self {
            origins: if origins.is_empty() { above.origins.clone() } else { origins },
            allow_methods: allow_methods.or_else(|| above.allow_methods.clone()),
            allow_headers: allow_headers.or_else(|| above.allow_headers.clone()),
            expose_headers: expose_headers.or_else(|| above.expose_headers.clone()),
            max_age: max_age.or_else(|| above.max_age.clone()),
            credentials: credentials.or(above.credentials),
            private_network: private_network.or(above.private_network),
            forward_not_matching: forward_not_matching.or(above.forward_not_matching),
            enabled,
        }
    }

    /// What a request gets.
    pub fn judge(&self, method: &Method, headers: &HeaderMap) -> Crossing {
        let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
            return Crossing::None;
        };
        let asked =
            headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
        let preflight = *method == Method::OPTIONS && asked;
        let fits = |text: &Text| origin.to_str().is_ok_and(|origin| text.matches(origin));
        let any = |text: &Text| text.is_exactly("*");
        let allowed = self.origins.iter().any(|text| any(text) || fits(text));
        let concerned = allowed || (preflight && self.forward_not_matching == Some(false));
        if !concerned {
            return Crossing::None;
        }
        let mut answer = HeaderMap::new();
        if allowed {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        let yes = HeaderValue::from_static("true");
        if self.credentials == Some(true) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes.clone());
        }
        let mut set = |name, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                answer.insert(name, value.clone());
            }
        };
        if allowed {
            set(header::ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose_headers);
        }
        if !preflight {
            return Crossing::Allow(answer);
        }
        set(header::ACCESS_CONTROL_ALLOW_METHODS, &self.allow_methods);
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, &self.allow_headers);
        set(header::ACCESS_CONTROL_MAX_AGE, &self.max_age);
        if self.private_network == Some(true) && headers.get(PRIVATE).is_some_and(|value| value == "true") {
            answer.insert(ALLOW_PRIVATE, yes);
        }
        Crossing::Preflight(answer)
    }
}
