//! What can be wrong with a certificate, a bundle, a request or a connection.

use std::io;

use mesh_model::identity::{SpiffeError, SpiffeId, TrustDomain};
use thiserror::Error;

/// Every error of this crate. The texts are sentences for a log or a user.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// The bytes are no X.509 certificate.
    #[error("certificate cannot be parsed: {0}")]
    Parse(String),
    /// The peer offered no certificate, or an empty chain was given.
    #[error("certificate chain is empty")]
    NoCertificate,
    /// SPIFFE X.509-SVID section 2: exactly one URI SAN.
    #[error("certificate has {0} URI names, a SPIFFE certificate has exactly one")]
    UriNames(usize),
    /// The URI SAN is no SPIFFE ID.
    #[error("certificate names no SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeError),
    /// The ID of a trust domain itself belongs to its CA and to nobody else.
    #[error("certificate names the trust domain {0} itself, not an identity in it")]
    NoPath(TrustDomain),
    /// Nothing is known of that trust domain: it has not joined, or has been removed.
    #[error("{0} is of a trust domain that is not trusted here")]
    UnknownTrustDomain(SpiffeId),
    /// The chain does not lead to a root of the identity's own trust domain.
    #[error("certificate of {id} is not vouched for by the roots of its trust domain: {reason}")]
    Untrusted {
        /// Who the certificate claims to be.
        id: SpiffeId,
        /// What path building said.
        reason: String,
    },
    /// Outside its time of validity.
    #[error("certificate of {id} is outside its validity ({reason}); check the clocks and the renewal")]
    Time {
        /// Who the certificate claims to be.
        id: SpiffeId,
        /// Which bound was crossed.
        reason: String,
    },
    /// The node that the certificate comes of was removed or revoked, or it is a withdrawn one of an administrator.
    #[error("certificate of {id}: its registration ({registration}) was revoked")]
    Revoked {
        /// Who the certificate names.
        id: SpiffeId,
        /// The number in its serial.
        registration: u64,
    },
    /// A genuine peer, but not the one that was wanted.
    #[error("peer is {id}, but {wanted} is expected here")]
    Refused {
        /// Who the peer is.
        id: SpiffeId,
        /// What the policy wants, in words.
        wanted: String,
    },
    /// Bootstrap: the chain has no certificate with the fingerprint of the token.
    #[error("server's chain has no root with the fingerprint {0} of the token")]
    PinNotFound(String),
    /// A trust bundle without a root, or with too many.
    #[error("trust bundle of {trust_domain} has {count} roots, 1 to {max} are allowed")]
    RootCount {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// How many were given.
        count: usize,
        /// [`crate::MAX_ROOTS`].
        max: usize,
    },
    /// A certificate that cannot be a root.
    #[error("certificate cannot be a root: {0}")]
    NotARoot(String),
    /// The private key is unusable or belongs to another certificate.
    #[error("private key cannot be used: {0}")]
    Key(String),
    /// A certificate signing request was refused.
    #[error("certificate signing request is refused: {0}")]
    Csr(String),
    /// A certificate could not be issued.
    #[error("certificate cannot be issued: {0}")]
    Issue(String),
    /// PEM text is not what it should be.
    #[error("PEM text {0}")]
    Pem(String),
    /// A TLS configuration could not be built.
    #[error("TLS configuration is invalid: {0}")]
    Config(String),
    /// No connection.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// host:port, or the path of a socket.
        address: String,
        /// The chain of causes, joined.
        reason: String,
    },
    /// A listening socket could not be made.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The path of the socket.
        address: String,
        /// Why.
        reason: String,
    },
}

impl From<Error> for rustls::Error {
    fn from(error: Error) -> Self {
        let other = rustls::OtherError(std::sync::Arc::new(error));
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
    }
}

/// An error and its causes in one sentence: transports hide the reason in `source()`.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        // tonic's wrapper says nothing, and others repeat what they wrap.
        if text != "transport error" && !texts.iter().any(|t| t.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts.join(": ")
}

/// Why a TLS handshake failed, as a sentence: rustls prints the reasons of a verifier as Rust source.
pub fn handshake_error(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => other.to_string(),
        Some(other) => other.to_string(),
        None => causes(error),
    }
}
