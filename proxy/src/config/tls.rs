//! `DownstreamTlsContext` and `UpstreamTlsContext`: certificates and roots come by SDS, peers are named by URI SANs, and
//! TLS 1.3 is spoken; with clients of whom no certificate is asked also 1.2, where that is said.

use mesh_model::identity::{SpiffeId, TrustDomain};
use serde::Serialize;
use xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    downstream_tls_context::SessionTicketKeysType,
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use xds_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::{
    error::Path,
    wire::{Result, Source, bool_or, refuse, source},
};

/// Most SAN matchers of one context.
const MAX_MATCHERS: usize = 10_000;
/// Most certificates of one context: each may be looked at in every handshake.
const MAX_CERTIFICATES: usize = 64;

/// A secret by name, and where to ask for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SecretRef {
    /// The stream that serves it.
    pub source: Source,
    /// Name of the resource.
    pub name: String,
}

/// Which authenticated peers are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerMatch {
    /// No matcher: every identity of a trusted domain.
    Any,
    /// `exact` URI matchers: one of these.
    OneOf(Vec<SpiffeId>),
    /// One `prefix` matcher `spiffe://<trust domain>/`: every identity of the domain.
    TrustDomain(TrustDomain),
}

/// What both directions have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsCommon {
    /// The own certificate.
    pub identity: Option<SecretRef>,
    /// Further ones, for clients that ask for a name that they have.
    pub further: Vec<SecretRef>,
    /// The roots, and with them whether the peer is verified at all.
    pub roots: Option<SecretRef>,
    /// Who the peer may be.
    pub peer: PeerMatch,
    /// ALPN protocols, most wanted first.
    pub alpn: Vec<String>,
    /// See there.
    pub versions: Versions,
}

/// Which versions are spoken: TLS 1.3, and of those that need not be of the mesh also 1.2, where that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Versions {
    /// TLS 1.3 alone.
    Only13,
    /// TLS 1.2 and 1.3.
    From12,
    /// TLS 1.2 alone.
    Only12,
}

impl TlsCommon {
    /// Every secret it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        self.identity.iter().chain(&self.further).chain(&self.roots)
    }
}

/// TLS that a filter chain terminates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DownstreamTls {
    /// See there. Always with an identity.
    pub common: TlsCommon,
    /// Whether clients without a certificate are turned away.
    pub require_client_certificate: bool,
    /// Whether clients without SNI are turned away.
    pub require_sni: bool,
}

/// TLS that a cluster originates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamTls {
    /// See there. Always with roots: an upstream is never trusted unseen.
    pub common: TlsCommon,
    /// Server name to send; empty sends none.
    pub sni: String,
}

pub(super) fn downstream(path: &Path<'_>, wire: DownstreamTlsContext) -> Result<DownstreamTls> {
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // Sessions are never resumed here: a resumed one would outlive the removal of a root.
        disable_stateful_session_resumption: _,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = wire;
    refuse!(path; session_timeout, ocsp_staple_policy, full_scan_certs_on_sni_mismatch, prefer_client_ciphers);
    match session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(_)) => {}
        Some(_) => return Err(path.field("session_ticket_keys").unsupported()),
    }
    let common_path = path.field("common_tls_context");
    let common = common(&common_path, common_tls_context.ok_or_else(|| common_path.missing())?)?;
    if common.identity.is_none() {
        return Err(common_path.field("tls_certificate_sds_secret_configs").missing());
    }
    let require = bool_or(&require_client_certificate, false);
    let validation = common_path.field("combined_validation_context");
    if require && common.roots.is_none() {
        return Err(validation.missing());
    }
    if common.roots.is_some() && common.versions != Versions::Only13 {
        let path = common_path.field("tls_params");
        return Err(path
            .field("tls_minimum_protocol_version")
            .invalid("TLSv1_2", "is only for servers that verify no client: the mesh speaks TLS 1.3"));
    }
    if !require && common.peer != PeerMatch::Any {
        return Err(validation.invalid("SAN matchers", "need require_client_certificate"));
    }
    Ok(DownstreamTls {
        common,
        require_client_certificate: require,
        require_sni: bool_or(&require_sni, false),
    })
}

#[allow(deprecated)]
pub(super) fn upstream(path: &Path<'_>, wire: UpstreamTlsContext) -> Result<UpstreamTls> {
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        // Nothing is resumed, see above.
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = wire;
    refuse!(path; auto_host_sni, auto_sni_san_validation, allow_renegotiation);
    let common_path = path.field("common_tls_context");
    let common = common(&common_path, common_tls_context.ok_or_else(|| common_path.missing())?)?;
    if common.roots.is_none() {
        return Err(common_path.field("combined_validation_context").missing());
    }
    if common.versions != Versions::Only13 {
        let path = common_path.field("tls_params");
        return Err(path
            .field("tls_minimum_protocol_version")
            .invalid("TLSv1_2", "is below TLS 1.3, the only version to endpoints"));
    }
    if !common.further.is_empty() {
        return Err(common_path.field("tls_certificate_sds_secret_configs").index(1).unsupported());
    }
    if !sni.is_empty() && rustls::pki_types::DnsName::try_from(sni.as_str()).is_err() {
        return Err(path.field("sni").invalid(&sni, "is no DNS name"));
    }
    Ok(UpstreamTls { common, sni })
}

#[allow(deprecated)]
fn common(path: &Path<'_>, wire: CommonTlsContext) -> Result<TlsCommon> {
    let CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = wire;
    refuse!(path; tls_certificates, tls_certificate_provider_instance, custom_tls_certificate_selector,
        tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance, custom_handshaker, key_log);
    let versions = match tls_params {
        Some(wire) => params(&path.field("tls_params"), wire)?,
        None => Versions::Only13,
    };
    let list = path.field("tls_certificate_sds_secret_configs");
    if tls_certificate_sds_secret_configs.len() > MAX_CERTIFICATES {
        let count = tls_certificate_sds_secret_configs.len();
        return Err(list.invalid(count, format!("certificates are more than {MAX_CERTIFICATES}")));
    }
    let certificates = tls_certificate_sds_secret_configs.into_iter().enumerate();
    let mut certificates = certificates.map(|(at, wire)| secret_ref(&list.index(at), wire));
    let identity = certificates.next().transpose()?;
    let further = certificates.collect::<Result<_>>()?;
    let (roots, peer) = match validation_context_type {
        None => (None, PeerMatch::Any),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(wire)) => {
            let path = path.field("validation_context_sds_secret_config");
            (Some(secret_ref(&path, wire)?), PeerMatch::Any)
        }
        Some(ValidationContextType::CombinedValidationContext(wire)) => {
            let (roots, peer) = combined(&path.field("combined_validation_context"), wire)?;
            (Some(roots), peer)
        }
        Some(ValidationContextType::ValidationContext(_)) => {
            return Err(path.field("validation_context").unsupported());
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            return Err(path.field("validation_context_certificate_provider").unsupported());
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            return Err(path.field("validation_context_certificate_provider_instance").unsupported());
        }
    };
    let alpn_path = path.field("alpn_protocols");
    for (at, protocol) in alpn_protocols.iter().enumerate() {
        if protocol.is_empty() || protocol.len() > 255 {
            return Err(alpn_path.index(at).invalid(protocol, "must have 1 to 255 bytes"));
        }
    }
    Ok(TlsCommon { identity, further, roots, peer, alpn: alpn_protocols, versions })
}

fn params(path: &Path<'_>, wire: TlsParameters) -> Result<Versions> {
    let TlsParameters {
        tls_minimum_protocol_version: minimum,
        tls_maximum_protocol_version: maximum,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = wire;
    // What rustls offers in TLS 1.3 is all there is: a list would only be a wish.
    refuse!(path; cipher_suites, ecdh_curves, signature_algorithms, compliance_policies);
    let minimum_path = path.field("tls_minimum_protocol_version");
    let maximum_path = path.field("tls_maximum_protocol_version");
    let least = match TlsProtocol::try_from(minimum) {
        // What is not said is the mesh's own.
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => TlsProtocol::TlSv13,
        Ok(TlsProtocol::TlSv12) => TlsProtocol::TlSv12,
        _ => return Err(minimum_path.invalid(minimum, "is below TLS 1.2, or unknown")),
    };
    match (TlsProtocol::try_from(maximum), least) {
        (Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13), TlsProtocol::TlSv12) => Ok(Versions::From12),
        (Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13), _) => Ok(Versions::Only13),
        (Ok(TlsProtocol::TlSv12), TlsProtocol::TlSv12) => Ok(Versions::Only12),
        _ => Err(maximum_path.invalid(maximum, "is below the least version, or below TLS 1.2")),
    }
}

fn secret_ref(path: &Path<'_>, wire: SdsSecretConfig) -> Result<SecretRef> {
    let SdsSecretConfig { name, sds_config } = wire;
    if name.is_empty() {
        return Err(path.field("name").missing());
    }
    Ok(SecretRef { source: source(&path.field("sds_config"), sds_config, true)?, name })
}

#[allow(deprecated)]
fn combined(path: &Path<'_>, wire: CombinedCertificateValidationContext) -> Result<(SecretRef, PeerMatch)> {
    let CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = wire;
    refuse!(path; validation_context_certificate_provider, validation_context_certificate_provider_instance);
    let default_path = path.field("default_validation_context");
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
        // Clients are never told which roots there are.
        suppress_client_ca_list: _,
    } = default_validation_context.unwrap_or_default();
    refuse!(default_path; trusted_ca, ca_certificate_provider_instance, system_root_certs, watched_directory,
        verify_certificate_spki, verify_certificate_hash, match_subject_alt_names,
        require_signed_certificate_timestamp, crl, allow_expired_certificate, trust_chain_verification,
        custom_validator_config, only_verify_leaf_cert_crl, max_verify_depth);
    let secret_path = path.field("validation_context_sds_secret_config");
    let secret = validation_context_sds_secret_config.ok_or_else(|| secret_path.missing())?;
    let peer = peer(&default_path.field("match_typed_subject_alt_names"), match_typed_subject_alt_names)?;
    Ok((secret_ref(&secret_path, secret)?, peer))
}

pub(super) fn peer(path: &Path<'_>, matchers: Vec<SubjectAltNameMatcher>) -> Result<PeerMatch> {
    if matchers.len() > MAX_MATCHERS {
        return Err(path.invalid(matchers.len(), format!("matchers are more than {MAX_MATCHERS}")));
    }
    let alone = matchers.len() == 1;
    let mut ids = Vec::with_capacity(matchers.len());
    for (at, wire) in matchers.into_iter().enumerate() {
        let path = path.index(at);
        let SubjectAltNameMatcher { san_type, matcher, oid } = wire;
        refuse!(path; oid);
        if SanType::try_from(san_type) != Ok(SanType::Uri) {
            return Err(path
                .field("san_type")
                .invalid(san_type, "is not URI, the only kind of SPIFFE names"));
        }
        let path = path.field("matcher");
        let StringMatcher { ignore_case, match_pattern } = matcher.ok_or_else(|| path.missing())?;
        refuse!(path; ignore_case);
        match match_pattern {
            Some(MatchPattern::Exact(id)) => {
                ids.push(SpiffeId::parse(&id).map_err(|e| path.field("exact").invalid(&id, e))?);
            }
            Some(MatchPattern::Prefix(prefix)) if alone => {
                let path = path.field("prefix");
                let domain = prefix.strip_prefix("spiffe://").and_then(|rest| rest.strip_suffix('/'));
                let domain =
                    domain.ok_or_else(|| path.invalid(&prefix, "is not spiffe://<trust domain>/"))?;
                let domain = TrustDomain::parse(domain).map_err(|e| path.invalid(&prefix, e))?;
                return Ok(PeerMatch::TrustDomain(domain));
            }
            Some(_) => return Err(path.invalid("pattern", "must be exact, or one single prefix")),
            None => return Err(path.missing()),
        }
    }
    Ok(if ids.is_empty() { PeerMatch::Any } else { PeerMatch::OneOf(ids) })
}
