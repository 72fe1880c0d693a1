//! Trust bundles as an Envoy secret. Private keys are never here: certificates come from the agent.

use mesh_model::identity::TrustDomain;
use mesh_tls::pem;
use xds_proto::{
    envoy::{
        config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, SpiffeCertValidatorConfig, secret,
            spiffe_cert_validator_config,
        },
    },
    to_any,
};

use super::tls::TRUST_BUNDLES;

/// The validation context `ROOTCA`: each trust domain with its own roots, which vouch for no other.
pub fn trust_bundles<'a>(domains: impl IntoIterator<Item = (&'a TrustDomain, &'a [Vec<u8>])>) -> Secret {
    let trust_domains = domains
        .into_iter()
        .map(|(name, roots)| spiffe_cert_validator_config::TrustDomain {
            name: name.to_string(),
            trust_bundle: Some(DataSource {
                specifier: Some(Specifier::InlineString(pem::certificates(roots.iter().map(Vec::as_slice)))),
                ..Default::default()
            }),
            ..Default::default()
        })
        .collect();
    let validator = SpiffeCertValidatorConfig { trust_domains, ..Default::default() };
    Secret {
        name: TRUST_BUNDLES.to_owned(),
        r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".to_owned(),
                typed_config: Some(to_any(&validator)),
            }),
            ..Default::default()
        })),
    }
}
