//! `Secret`: certificates and roots, always inline.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use mesh_model::identity::{SpiffeId, TrustDomain};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as WireSecret, SpiffeCertValidatorConfig, TlsCertificate,
    secret::Type, spiffe_cert_validator_config,
};

use super::{
    error::Path,
    tls::{PeerMatch, peer},
    wire::{Result, inline, refuse, unpack},
};

/// Most certificates of a chain or bundle.
const MAX_CERTIFICATES: usize = 64;

/// What SDS gives.
#[derive(Debug)]
pub enum Secret {
    /// An own certificate with its key.
    Certificate(CertificateSecret),
    /// Roots.
    Validation(ValidationSecret),
}

/// `TlsCertificate`.
pub struct CertificateSecret {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for CertificateSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateSecret").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Roots by trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationSecret {
    /// Never empty.
    pub roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// By trust domain, registrations of nodes whose certificates are refused.
    pub revoked: BTreeMap<TrustDomain, BTreeSet<u64>>,
}

pub(super) fn convert(path: &Path<'_>, wire: WireSecret) -> Result<Secret> {
    let WireSecret { name: _, r#type } = wire;
    match r#type.ok_or_else(|| path.field("type").missing())? {
        Type::TlsCertificate(wire) => {
            certificate(&path.field("tls_certificate"), wire).map(Secret::Certificate)
        }
        Type::ValidationContext(wire) => {
            validation(&path.field("validation_context"), wire).map(Secret::Validation)
        }
        Type::SessionTicketKeys(_) => Err(path.field("session_ticket_keys").unsupported()),
        Type::GenericSecret(_) => Err(path.field("generic_secret").unsupported()),
    }
}

fn certificate(path: &Path<'_>, wire: TlsCertificate) -> Result<CertificateSecret> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = wire;
    refuse!(path; pkcs12, watched_directory, private_key_provider, password, ocsp_staple,
        signed_certificate_timestamp, tls_params);
    let chain_path = path.field("certificate_chain");
    let chain = inline(&chain_path, certificate_chain.ok_or_else(|| chain_path.missing())?)?;
    let key_path = path.field("private_key");
    let key = inline(&key_path, private_key.ok_or_else(|| key_path.missing())?)?;
    Ok(CertificateSecret {
        chain: certificates(&chain_path, &chain)?,
        // The parser's words could quote the text.
        key: PrivateKeyDer::from_pem_slice(&key).map_err(|_| key_path.malformed("no private key in PEM"))?,
    })
}

fn certificates(path: &Path<'_>, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let list: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES + 1).collect();
    let list = list.map_err(|_| path.malformed("no certificates in PEM"))?;
    match list.len() {
        0 => Err(path.malformed("no certificates in PEM")),
        n if n > MAX_CERTIFICATES => {
            Err(path.invalid(n, format!("certificates are more than {MAX_CERTIFICATES}")))
        }
        _ => Ok(list),
    }
}

#[allow(deprecated)]
fn validation(path: &Path<'_>, wire: CertificateValidationContext) -> Result<ValidationSecret> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list: _,
    } = wire;
    refuse!(path; ca_certificate_provider_instance, system_root_certs, watched_directory, verify_certificate_spki,
        verify_certificate_hash, match_subject_alt_names, require_signed_certificate_timestamp, crl,
        allow_expired_certificate, trust_chain_verification, only_verify_leaf_cert_crl, max_verify_depth);
    // Who the peer may be is for each user of the roots to say.
    let matchers = path.field("match_typed_subject_alt_names");
    if peer(&matchers, match_typed_subject_alt_names)? != PeerMatch::Any {
        return Err(matchers.unsupported());
    }
    let validator_path = path.field("custom_validator_config");
    let mut revoked = BTreeMap::new();
    let roots = match custom_validator_config {
        // With the SPIFFE validator Envoy takes roots from it alone, and so does this proxy.
        Some(config) => {
            let path = validator_path.field("typed_config");
            let any = config.typed_config.ok_or_else(|| path.missing())?;
            spiffe(&path, unpack(&path, &any)?, &mut revoked)?
        }
        None => {
            let path = path.field("trusted_ca");
            let pem = inline(&path, trusted_ca.ok_or_else(|| path.missing())?)?;
            by_their_own_names(&path, certificates(&path, &pem)?)?
        }
    };
    Ok(ValidationSecret { roots, revoked })
}

fn spiffe(
    path: &Path<'_>,
    wire: SpiffeCertValidatorConfig,
    revoked: &mut BTreeMap<TrustDomain, BTreeSet<u64>>,
) -> Result<BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>> {
    let SpiffeCertValidatorConfig { trust_domains, trust_bundles } = wire;
    refuse!(path; trust_bundles);
    let list = path.field("trust_domains");
    if trust_domains.is_empty() {
        return Err(list.missing());
    }
    let mut roots = BTreeMap::new();
    for (at, wire) in trust_domains.into_iter().enumerate() {
        let path = list.index(at);
        let spiffe_cert_validator_config::TrustDomain { name, trust_bundle, workload_trust_domain } = wire;
        refuse!(path; workload_trust_domain);
        let domain = TrustDomain::parse(&name).map_err(|e| path.field("name").invalid(&name, e))?;
        let bundle_path = path.field("trust_bundle");
        let pem = inline(&bundle_path, trust_bundle.ok_or_else(|| bundle_path.missing())?)?;
        // Beside the certificates, in what is a comment to Envoy.
        let refused = mesh_tls::revoked_in(&String::from_utf8_lossy(&pem));
        if !refused.is_empty() {
            revoked.insert(domain.clone(), refused);
        }
        if roots.insert(domain, certificates(&bundle_path, &pem)?).is_some() {
            return Err(path.field("name").duplicate(name));
        }
    }
    Ok(roots)
}

/// Roots without the SPIFFE validator must name their trust domain themselves (X.509-SVID section 4.2).
fn by_their_own_names(
    path: &Path<'_>,
    certificates: Vec<CertificateDer<'static>>,
) -> Result<BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>> {
    let mut roots: BTreeMap<TrustDomain, Vec<_>> = BTreeMap::new();
    for certificate in certificates {
        let info = mesh_tls::certificate_info(&certificate).map_err(|e| path.malformed(e))?;
        let id = SpiffeId::parse(&info.subject).map_err(|_| {
            path.invalid(
                &info.subject,
                "names no trust domain: give the roots by the SPIFFE validator instead",
            )
        })?;
        roots.entry(id.trust_domain().clone()).or_default().push(certificate);
    }
    Ok(roots)
}
