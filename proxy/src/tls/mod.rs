//! TLS configurations from plain data: live certificates and roots, peers by SPIFFE ID.

mod secrets;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mesh_tls::{
    ClientAuth, ClientConfig, PeerPolicy, ServerConfig, SharedBundles, SharedIdentity, TlsVersions,
};
use rustls::pki_types::{CertificateDer, ServerName};
pub use secrets::{IdentitySlot, RootsSlot, Secrets};

use crate::config::{Codec, DownstreamTls, PeerMatch, TlsCommon, UpstreamTls, Versions};

fn policy(peer: &PeerMatch) -> PeerPolicy {
    match peer {
        PeerMatch::Any => PeerPolicy::AnyMeshIdentity,
        PeerMatch::OneOf(ids) => PeerPolicy::OneOf(ids.clone()),
        PeerMatch::TrustDomain(domain) => PeerPolicy::TrustDomain(domain.clone()),
    }
}

fn slots(secrets: &Secrets, common: &TlsCommon) -> (Option<IdentitySlot>, Option<RootsSlot>) {
    let identity = common.identity.as_ref().map(|secret| secrets.identity(secret));
    (identity, common.roots.as_ref().map(|secret| secrets.roots(secret)))
}

fn alpn(configured: &[String], default: &[&'static [u8]]) -> Vec<Vec<u8>> {
    if configured.is_empty() {
        return default.iter().map(|p| p.to_vec()).collect();
    }
    configured.iter().map(|p| p.as_bytes().to_vec()).collect()
}

/// A filter chain's side of TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// Whether clients without SNI are turned away.
    pub require_sni: bool,
    identity: SharedIdentity,
}

impl ServerTls {
    /// Builds the configuration. `codec` is `None` for bytes, which negotiate no protocol unless told to.
    ///
    /// # Errors
    /// The TLS library's words.
    pub fn new(
        secrets: &Secrets,
        tls: &DownstreamTls,
        codec: Option<Codec>,
    ) -> Result<Self, mesh_tls::Error> {
        let (identity, roots) = slots(secrets, &tls.common);
        let client = match (&roots, tls.require_client_certificate) {
            (Some(_), true) => ClientAuth::Required(policy(&tls.common.peer)),
            (Some(_), false) => ClientAuth::Optional,
            (None, _) => ClientAuth::None,
        };
        let default: &[&[u8]] = match codec {
            Some(Codec::Auto) => &[mesh_tls::ALPN_H2, mesh_tls::ALPN_HTTP11],
            Some(Codec::Http2) => &[mesh_tls::ALPN_H2],
            Some(Codec::Http1) => &[mesh_tls::ALPN_HTTP11],
            None => &[],
        };
        let alpn = alpn(&tls.common.alpn, default);
        let alpn: Vec<&[u8]> = alpn.iter().map(Vec::as_slice).collect();
        let identity = identity.map_or_else(|| mesh_tls::shared_identity(None), |slot| slot.shared);
        let bundles =
            roots.map_or_else(|| mesh_tls::shared_bundles(mesh_tls::TrustBundles::new()), |s| s.shared);
        let versions = match tls.common.versions {
            Versions::Only13 => TlsVersions::Only13,
            Versions::From12 => TlsVersions::From12,
            Versions::Only12 => TlsVersions::Only12,
        };
        let further = tls.common.further.iter().map(|secret| secrets.identity(secret).shared);
        let identities = [identity.clone()].into_iter().chain(further).collect();
        let config = mesh_tls::edge_server_config(identities, versions, &bundles, client, &alpn)?;
        Ok(Self { config, require_sni: tls.require_sni, identity })
    }

    /// The own SPIFFE ID, as the certificate of this moment has it.
    pub fn own_id(&self) -> Option<String> {
        let key = self.identity.load_full()?;
        mesh_tls::peer_spiffe_id(&key.cert).ok().map(|id| id.to_string())
    }
}

/// `x-forwarded-client-cert` for a verified client, in Envoy's form: `By=<own URI>;Hash=<SHA-256 of the leaf>;URI=<URI>`.
/// SPIFFE IDs have no character that would need quoting.
pub fn forwarded_client_cert(own: Option<&str>, chain: &[CertificateDer<'_>]) -> Option<String> {
    let leaf = chain.first()?;
    let id = mesh_tls::peer_spiffe_id(chain).ok()?;
    let hash: String = mesh_tls::fingerprint(leaf).iter().map(|b| format!("{b:02x}")).collect();
    let by = own.map(|own| format!("By={own};")).unwrap_or_default();
    Some(format!("{by}Hash={hash};URI={id}"))
}

/// Which protocols a handshake with an upstream offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Both.
    Any,
    /// None: bytes.
    Nothing,
}

/// A cluster's side of TLS.
#[derive(Debug)]
pub struct ClientTls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    any: Arc<ClientConfig>,
    nothing: Arc<ClientConfig>,
    sni: Option<ServerName<'static>>,
    identity: Option<IdentitySlot>,
    roots: RootsSlot,
}

impl ClientTls {
    /// Builds the configurations.
    ///
    /// # Errors
    /// The TLS library's words.
    pub fn new(secrets: &Secrets, tls: &UpstreamTls) -> Result<Self, mesh_tls::Error> {
        let (identity, roots) = slots(secrets, &tls.common);
        let roots = roots.ok_or_else(|| mesh_tls::Error::Config("an upstream without roots".to_owned()))?;
        let build = |default: &[&'static [u8]]| {
            let alpn = alpn(&tls.common.alpn, default);
            let alpn: Vec<&[u8]> = alpn.iter().map(Vec::as_slice).collect();
            let shared = identity.as_ref().map(|slot| slot.shared.clone());
            let mut config: Arc<ClientConfig> =
                mesh_tls::client_config(shared, roots.shared.clone(), policy(&tls.common.peer), &alpn)?;
            if let Some(config) = Arc::get_mut(&mut config) {
                config.enable_sni = !tls.sni.is_empty();
            }
            Ok::<_, mesh_tls::Error>(config)
        };
        let sni = match tls.sni.as_str() {
            "" => None,
            name => Some(
                ServerName::try_from(name.to_owned())
                    .map_err(|e| mesh_tls::Error::Config(format!("server name {name:?}: {e}")))?,
            ),
        };
        Ok(Self {
            http1: build(&[mesh_tls::ALPN_HTTP11])?,
            http2: build(&[mesh_tls::ALPN_H2])?,
            any: build(&[mesh_tls::ALPN_H2, mesh_tls::ALPN_HTTP11])?,
            nothing: build(&[])?,
            sni,
            identity,
            roots,
        })
    }

    /// The configuration to connect with.
    pub fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        match offer {
            Offer::Http1 => self.http1.clone(),
            Offer::Http2 => self.http2.clone(),
            Offer::Any => self.any.clone(),
            Offer::Nothing => self.nothing.clone(),
        }
    }

    /// The name to send; the address of the endpoint (which is never sent) where there is none.
    pub fn server_name(&self, address: std::net::IpAddr) -> ServerName<'static> {
        self.sni.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()))
    }

    /// Whether certificate and roots have arrived.
    pub fn ready(&self) -> bool {
        self.identity.as_ref().is_none_or(|slot| slot.shared.load().is_some())
            && self.roots.generation.load(Ordering::Acquire) > 0
    }

    /// Changes whenever certificate or roots do. Connections of an earlier generation take no new requests.
    pub fn generation(&self) -> u64 {
        let of = |generation: &AtomicU64| generation.load(Ordering::Acquire);
        of(&self.roots.generation) + self.identity.as_ref().map_or(0, |slot| of(&slot.generation))
    }
}

/// Roots that handshakes read live.
pub type Bundles = SharedBundles;
