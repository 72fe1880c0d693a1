//! Bootstrap: the only thing known of the server is the fingerprint of its root, from a join token.

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    Error, PeerPolicy, Usage, fingerprint,
    inspect::{parse_root, peer_spiffe_id},
    verify::{chain, tls13_signatures_only, verify_chain},
};

/// Accepts a replica whose chain carries the root with this fingerprint, and verifies up to that root.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(crate) root_sha256: [u8; 32],
}

impl PinnedVerifier {
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let id = peer_spiffe_id(chain)?;
        let root = chain.iter().skip(1).find(|c| fingerprint(c) == self.root_sha256).ok_or_else(|| {
            Error::PinNotFound(self.root_sha256.iter().map(|b| format!("{b:02x}")).collect())
        })?;
        parse_root(root, id.trust_domain())?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|e| Error::NotARoot(e.to_string()))?;
        verify_chain(&id, &[anchor], chain, Usage::Server, now)?;
        // A token leads to the control plane: a workload of the same domain must not receive its secret.
        PeerPolicy::Replicas(id.trust_domain().clone()).check(&id)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(&chain(end_entity, intermediates), now)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}
