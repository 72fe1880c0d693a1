//! Trust bundles as an Envoy secret. Private keys are never here: certificates come from the agent.

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_model::identity::TrustDomain;
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
                specifier: Some(Specifier::InlineString(roots.iter().map(|der| pem(der)).collect())),
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

/// RFC 7468: lines of 64 characters.
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = STANDARD.encode(der);
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}
