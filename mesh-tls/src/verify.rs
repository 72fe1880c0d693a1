//! The verification of a peer: identity first, then the roots of that identity's own trust domain.

use mesh_model::identity::SpiffeId;
use rustls::{
    DistinguishedName,
    client::danger::{ServerCertVerified, ServerCertVerifier},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    Error, PeerPolicy, SharedBundles, TrustBundles,
    inspect::{parse, peer_spiffe_id, registration},
    provider,
};

/// Most certificates that a peer may send beside its leaf.
const MAX_INTERMEDIATES: usize = 8;

/// What the peer's certificate is used for: its extended key usage must say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The peer is the server.
    Server,
    /// The peer is the client.
    Client,
}

/// Verifies a chain, leaf first, and returns who the peer is.
///
/// # Errors
/// The first thing that is wrong, in this order: identity, trust domain, chain and time, revocation, policy.
pub fn verify_peer(
    bundles: &TrustBundles,
    policy: &PeerPolicy,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<SpiffeId, Error> {
    let id = peer_spiffe_id(chain)?;
    let anchors = bundles.anchors(id.trust_domain()).ok_or_else(|| Error::UnknownTrustDomain(id.clone()))?;
    verify_chain(&id, anchors, chain, usage, now)?;
    let registration = chain.first().and_then(registration);
    if let Some(registration) = registration.filter(|n| bundles.is_revoked(id.trust_domain(), *n)) {
        return Err(Error::Revoked { id, registration });
    }
    policy.check(&id)?;
    Ok(id)
}

/// Path building and time. `id` is only for the error's text.
pub(crate) fn verify_chain(
    id: &SpiffeId,
    anchors: &[TrustAnchor<'_>],
    chain: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<(), Error> {
    let untrusted = |reason: String| Error::Untrusted { id: id.clone(), reason };
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificate)?;
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(untrusted(format!("{} intermediates were sent", intermediates.len())));
    }
    // webpki ignores keyUsage. A leaf that could sign certificates would be refused as a CA anyhow; here an
    // intermediate that may not sign them is refused as well.
    for certificate in intermediates {
        let parsed = parse(certificate)?;
        let usage = parsed.key_usage().map_err(|e| untrusted(e.to_string()))?;
        if usage.is_some_and(|u| !u.value.key_cert_sign()) {
            return Err(untrusted(format!("{} may not sign certificates", parsed.subject())));
        }
    }
    let end_entity = EndEntityCert::try_from(leaf).map_err(|e| Error::Parse(e.to_string()))?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let algorithms = provider().signature_verification_algorithms;
    end_entity
        .verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(|error| match error {
            webpki::Error::CertExpired { time, not_after } => Error::Time {
                id: id.clone(),
                reason: format!("expired {} s ago", time.as_secs().saturating_sub(not_after.as_secs())),
            },
            webpki::Error::CertNotValidYet { time, not_before } => Error::Time {
                id: id.clone(),
                reason: format!("valid only in {} s", not_before.as_secs().saturating_sub(time.as_secs())),
            },
            webpki::Error::UnknownIssuer => untrusted("the issuer is unknown".to_owned()),
            other => untrusted(other.to_string()),
        })
}

/// A verifier for either side.
#[derive(Debug)]
pub(crate) struct SpiffeVerifier {
    pub(crate) bundles: SharedBundles,
    pub(crate) policy: PeerPolicy,
    /// As server only: whether a client without a certificate is turned away.
    pub(crate) client_mandatory: bool,
}

impl SpiffeVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_peer(&self.bundles.load(), &self.policy, &chain(leaf, intermediates), usage, now)?;
        Ok(())
    }
}

/// As a peer sends it, leaf first.
pub(crate) fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Vec<CertificateDer<'static>> {
    std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned()).collect()
}

/// What every verifier says of signatures: TLS 1.3 is verified by the one provider; TLS 1.2, which is not offered, is an
/// error rather than a panic, should that ever change.
macro_rules! tls13_signatures_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &rustls_pki_types::CertificateDer<'_>,
            _dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = crate::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            crate::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use tls13_signatures_only;

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The name is for routing by SNI only: identity comes from the SPIFFE ID and the policy.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Usage::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_mandatory
    }

    /// None: the names of roots would only help a stranger, and SPIFFE clients have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures_only!();
}
