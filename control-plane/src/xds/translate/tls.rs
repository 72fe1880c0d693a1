//! Mesh mTLS in Envoy's words: TLS 1.3, both sides present SPIFFE certificates, keys and bundles by SDS from the
//! agent.

use mesh_model::identity::SpiffeId;
use xds_proto::envoy::{
    config::core::v3::TransportSocket,
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
    },
};

use super::wire::{agent_sds, exact, transport_socket, yes};

/// SDS name of the workload's own certificate.
pub const OWN_CERTIFICATE: &str = "default";
/// SDS name of the trust bundles, a SPIFFE validator with one bundle per trust domain.
pub const TRUST_BUNDLES: &str = "ROOTCA";

pub(super) const TLS: &str = "envoy.transport_sockets.tls";

/// Names to accept. An empty list would accept *any* identity of the mesh in Envoy, and in gRPC, so it becomes one
/// that nobody has.
pub(super) fn names(allowed: &[SpiffeId]) -> Vec<String> {
    let mut names: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        names.push("spiffe://nobody.invalid/nobody".to_owned());
    }
    names
}

/// Client side: shows the own certificate and accepts only the given identities.
pub(super) fn upstream(sni: &str, allowed: &[SpiffeId], alpn: &[&str]) -> TransportSocket {
    let matchers = names(allowed)
        .iter()
        .map(|name| SubjectAltNameMatcher {
            san_type: SanType::Uri as i32,
            matcher: Some(exact(name)),
            ..Default::default()
        })
        .collect();
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: matchers,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret(TRUST_BUNDLES)),
        ..Default::default()
    };
    let common = common(alpn, ValidationContextType::CombinedValidationContext(validation));
    let context = UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.to_owned(),
        // Resumption would outlive the removal of a root.
        max_session_keys: Some(xds_proto::google::protobuf::UInt32Value { value: 0 }),
        ..Default::default()
    };
    transport_socket(TLS, &context)
}

/// Server side: any identity of a trusted domain may connect; who may do what is decided behind it.
pub(super) fn downstream(alpn: &[&str]) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(
            alpn,
            ValidationContextType::ValidationContextSdsSecretConfig(secret(TRUST_BUNDLES)),
        )),
        require_client_certificate: yes(),
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(
            xds_proto::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true),
        ),
        ..Default::default()
    };
    transport_socket(TLS, &context)
}

/// Plain text, for endpoints that have no proxy.
pub(super) fn plain() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", &RawBuffer {})
}

fn common(alpn: &[&str], validation: ValidationContextType) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(OWN_CERTIFICATE)],
        alpn_protocols: alpn.iter().map(|p| (*p).to_owned()).collect(),
        validation_context_type: Some(validation),
        ..Default::default()
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(agent_sds()) }
}
