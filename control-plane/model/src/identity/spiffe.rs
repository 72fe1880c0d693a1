//! SPIFFE IDs and trust domains (SPIFFE ID specification, sections 2.1 to 2.4).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest SPIFFE ID that a certificate may carry (SPIFFE ID specification 2.3), in bytes.
pub const MAX_SPIFFE_ID: usize = 2048;
/// Longest trust domain name (SPIFFE ID specification 2.1), in bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpiffeError {
    /// The scheme is missing or another one.
    #[error("SPIFFE ID {0:?} does not begin with spiffe://")]
    Scheme(String),
    /// The trust domain is empty, too long, or has a character outside `[a-z0-9._-]`.
    #[error("trust domain {0:?} must be 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain(String),
    /// A path segment is empty, `.`, `..`, or has a character outside `[a-zA-Z0-9._-]`.
    #[error("SPIFFE ID {id:?} has the bad path segment {segment:?}")]
    Segment {
        /// The whole ID.
        id: String,
        /// The offending segment.
        segment: String,
    },
    /// Longer than [`MAX_SPIFFE_ID`].
    #[error("SPIFFE ID of {0} bytes is longer than 2048")]
    TooLong(usize),
}

/// The name of a trust root: every certificate below it names this domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Parses the bare name, without scheme.
    ///
    /// # Errors
    /// [`SpiffeError::TrustDomain`] naming the text.
    pub fn parse(name: &str) -> Result<Self, SpiffeError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN || !name.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain(name.chars().take(MAX_TRUST_DOMAIN + 1).collect()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;
    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        Self::parse(s)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;
    fn try_from(s: String) -> Result<Self, SpiffeError> {
        Self::parse(&s)
    }
}

impl From<TrustDomain> for String {
    fn from(t: TrustDomain) -> Self {
        t.0
    }
}

/// Who a peer is, as its certificate says in a URI SAN.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// With its leading slash; empty for the ID of the trust domain itself.
    path: String,
}

/// What a SPIFFE ID of ours stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// `/ns/<namespace>/sa/<service account>`
    Workload {
        /// Namespace of the service account.
        namespace: &'a str,
        /// The service account.
        service_account: &'a str,
    },
    /// `/isthmus/node/<name>`
    Node(&'a str),
    /// `/isthmus/replica/<id>`
    Replica(u64),
    /// `/isthmus/admin/<name>`
    Admin(&'a str),
    /// Anything else: authenticated, but nobody we know.
    Other,
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>/<path>`.
    ///
    /// # Errors
    /// Names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = TrustDomain::parse(domain)?;
        for segment in path.split('/').skip(1) {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(allowed) {
                return Err(SpiffeError::Segment { id: text.to_owned(), segment: segment.to_owned() });
            }
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }

    /// The ID of a workload. Namespace and service account are DNS labels, so that the result always parses.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/ns/{namespace}/sa/{service_account}") }
    }

    /// The ID of a node agent.
    pub fn node(trust_domain: &TrustDomain, name: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/isthmus/node/{name}") }
    }

    /// The ID of a control-plane replica.
    pub fn replica(trust_domain: &TrustDomain, id: u64) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/isthmus/replica/{id}") }
    }

    /// The ID of a person or tool with administrative rights.
    pub fn admin(trust_domain: &TrustDomain, name: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/isthmus/admin/{name}") }
    }

    /// The trust domain, whose roots must have signed the certificate.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What this ID stands for in our scheme.
    pub fn role(&self) -> Role<'_> {
        let segments: Vec<&str> = self.path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["ns", namespace, "sa", service_account] => Role::Workload { namespace, service_account },
            ["isthmus", "node", name] => Role::Node(name),
            ["isthmus", "replica", id] => id.parse().map_or(Role::Other, Role::Replica),
            ["isthmus", "admin", name] => Role::Admin(name),
            _ => Role::Other,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        Self::parse(s)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;
    fn try_from(s: String) -> Result<Self, SpiffeError> {
        Self::parse(&s)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_id_reads_back_as_what_it_was_made_from() {
        let td = TrustDomain::parse("west.example").unwrap();
        let id = SpiffeId::workload(&td, "shop", "pay");
        assert_eq!(id.to_string(), "spiffe://west.example/ns/shop/sa/pay");
        assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
        assert_eq!(id.role(), Role::Workload { namespace: "shop", service_account: "pay" });
        assert_eq!(SpiffeId::replica(&td, 3).role(), Role::Replica(3));
    }

    #[test]
    fn texts_that_could_be_taken_for_another_identity_are_refused() {
        for bad in [
            "https://west.example/ns/a/sa/b",
            "spiffe://",
            "spiffe://West.example/ns/a",
            "spiffe://west.example/ns//sa",
            "spiffe://west.example/ns/../sa",
            "spiffe://west.example/ns/a/",
            "spiffe://west.example:8080/x",
            "spiffe://user@west.example/x",
            "spiffe://west.example/ns/a%2fb",
            "spiffe://west.example/a?b",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }
}
