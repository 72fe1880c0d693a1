//! TLS configurations for both sides.

use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    client::Resumption,
    server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use crate::{
    Error, PeerPolicy, SharedBundles, SharedIdentity,
    identity::{ByName, LiveIdentity},
    pinned::PinnedVerifier,
    provider,
    verify::SpiffeVerifier,
};

/// What a server wants of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate, of a peer that the policy accepts.
    Required(PeerPolicy),
    /// A certificate is verified when offered (any identity of the mesh), and may be absent: the services
    /// behind the door look at [`crate::grpc::PeerInfo`]. A bad certificate is refused, never ignored.
    Optional,
    /// Never asked for.
    None,
}

/// A server's configuration. Own certificate and trust bundles are read live at each handshake.
///
/// # Errors
/// The provider does not support TLS 1.3.
pub fn server_config(
    identity: SharedIdentity,
    bundles: SharedBundles,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    build_server(Arc::new(LiveIdentity(identity)), TlsVersions::Only13, &bundles, client, alpn)
}

/// Which versions clients may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersions {
    /// RFC 8446 alone, as within the mesh.
    Only13,
    /// That and RFC 5246.
    From12,
    /// RFC 5246 alone.
    Only12,
}

/// The configuration of a server at the edge of the mesh, for clients who need not be of it: which of its certificates they are shown
/// is said by the name that they ask for: the first that has it, else the first of all. They are read live at each handshake.
///
/// # Errors
/// The provider does not support the versions, or clients are to be verified in an older one than TLS 1.3.
pub fn edge_server_config(
    identities: Vec<SharedIdentity>,
    versions: TlsVersions,
    bundles: &SharedBundles,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    if client != ClientAuth::None && versions != TlsVersions::Only13 {
        return Err(Error::Config("clients are verified by TLS 1.3 only".to_owned()));
    }
    build_server(Arc::new(ByName(identities)), versions, bundles, client, alpn)
}

fn build_server(
    own: Arc<dyn ResolvesServerCert>,
    versions: TlsVersions,
    bundles: &SharedBundles,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = |policy, client_mandatory| {
        Arc::new(SpiffeVerifier { bundles: bundles.clone(), policy, client_mandatory })
    };
    let versions: &[&SupportedProtocolVersion] = match versions {
        TlsVersions::Only13 => &[&TLS13],
        TlsVersions::From12 => &[&TLS13, &TLS12],
        TlsVersions::Only12 => &[&TLS12],
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| Error::Config(e.to_string()))?;
    let builder = match client {
        ClientAuth::Required(policy) => builder.with_client_cert_verifier(verifier(policy, true)),
        ClientAuth::Optional => {
            builder.with_client_cert_verifier(verifier(PeerPolicy::AnyMeshIdentity, false))
        }
        ClientAuth::None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
    };
    let mut config = builder.with_cert_resolver(own);
    config.alpn_protocols = owned(alpn);
    // A resumed session skips certificate verification, and so would outlive a removed root, or the own certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// A client's configuration. Own certificate and trust bundles are read live at each handshake.
///
/// # Errors
/// The provider does not support TLS 1.3.
pub fn client_config(
    identity: Option<SharedIdentity>,
    bundles: SharedBundles,
    server: PeerPolicy,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    // `client_mandatory` is for the other side.
    let verifier = SpiffeVerifier { bundles, policy: server, client_mandatory: true };
    build_client(Arc::new(verifier), identity, alpn)
}

/// A client's configuration for bootstrap, before any certificate or bundle is at hand: accepts only a
/// control-plane replica whose chain *contains* the root with this SHA-256 fingerprint (of its DER). So
/// replicas send leaf, issuer and root.
///
/// # Errors
/// The provider does not support TLS 1.3.
pub fn client_config_pinned(root_sha256: [u8; 32], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    build_client(Arc::new(PinnedVerifier { root_sha256 }), None, alpn)
}

fn build_client(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    identity: Option<SharedIdentity>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Config(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(LiveIdentity(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|p| p.to_vec()).collect()
}
