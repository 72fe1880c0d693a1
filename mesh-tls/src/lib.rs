//! SPIFFE identities over TLS 1.3: verifiers, configurations, certificates.
//!
//! A peer is whoever the one SPIFFE ID in its leaf certificate says, provided that the certificate chains to
//! a root of *that ID's own trust domain*. The roots of one trust domain never vouch for another, and the
//! name of the host that was dialled plays no part. Roots and the own certificate are read live at every
//! handshake, so that rotation needs no restart and drops no connection.
//!
//! Two things are absent on purpose. There is no TLS 1.2. And there is no session resumption: a resumed
//! session skips the verification of certificates, so it would outlive the removal of a root.
#![forbid(unsafe_code)]

mod bundles;
mod config;
pub mod csr;
mod error;
pub mod grpc;
mod identity;
mod inspect;
pub mod issue;
pub mod jwt;
pub mod pem;
mod pinned;
mod policy;
mod renewal;
pub mod seal;
mod sources;
mod verify;

#[cfg(test)]
mod bytes_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod handshake_tests;

use std::sync::{Arc, LazyLock};

pub use bundles::{MAX_ROOTS, SharedBundles, TrustBundles, revoked_in, revoked_remark, shared_bundles};
pub use config::{
    ClientAuth, TlsVersions, client_config, client_config_pinned, edge_server_config, server_config,
};
pub use error::{Error, handshake_error};
pub use identity::{Identity, SharedIdentity, certified, shared_identity};
pub use inspect::{
    CertificateInfo, certificate_info, dns_names, fingerprint, is_signed_by, parse_root, peer_spiffe_id,
    registration, root_of,
};
pub use policy::PeerPolicy;
pub use renewal::Life;
pub use rustls::sign::CertifiedKey;
pub use rustls::{ClientConfig, ServerConfig};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer};
pub use sources::{Entered, Sources};
pub use verify::{Usage, verify_peer};

/// ALPN protocol of gRPC.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN protocol of HTTP/1.1.
pub const ALPN_HTTP11: &[u8] = b"http/1.1";

static PROVIDER: LazyLock<Arc<rustls::crypto::CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The one crypto provider: named in every builder here, so that nothing depends on a process default.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    PROVIDER.clone()
}

/// Makes aws-lc-rs the default of the process, for libraries that ask for one (kube). Idempotent.
pub fn install_provider() {
    // An error means that a default is in place already; there is only one provider in the lock file.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
