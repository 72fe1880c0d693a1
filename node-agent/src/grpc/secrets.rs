//! Envoy's secrets, as files hold them. PURE.

use mesh_model::identity::SpiffeId;
use mesh_tls::{CertificateDer, peer_spiffe_id};
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use xds_proto::{
    Message,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
        },
    },
    google::protobuf::Any,
};

/// A certificate with its key, and the roots of its own trust domain. PEM.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Material {
    pub identity: SpiffeId,
    pub chain: String,
    pub key: String,
    /// Of no other domain: a file of roots can't say which root may vouch for which domain.
    pub roots: String,
}

/// Why secrets can't be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SecretError {
    #[error("{0} is no such message: {1}")]
    Decode(&'static str, prost::DecodeError),
    #[error("the certificate chain has no SPIFFE identity: {0}")]
    Identity(String),
    #[error("{0} is not inline")]
    NotInline(&'static str),
}

impl Material {
    /// From the resources of a response; None until all of it is there.
    ///
    /// # Errors
    /// Something is there and is not what it should be.
    pub fn read(resources: &[Any]) -> Result<Option<Self>, SecretError> {
        let (mut own, mut validation) = (None, None);
        for any in resources {
            let secret = Secret::decode(any.value.as_slice())
                .map_err(|error| SecretError::Decode("a secret", error))?;
            match secret.r#type {
                Some(secret::Type::TlsCertificate(certificate)) => own = Some(certificate),
                Some(secret::Type::ValidationContext(context)) => validation = Some(context),
                _ => {}
            }
        }
        let (Some(own), Some(validation)) = (own, validation) else { return Ok(None) };
        Self::of(own, validation)
    }

    fn of(
        own: TlsCertificate,
        validation: CertificateValidationContext,
    ) -> Result<Option<Self>, SecretError> {
        let chain = inline(own.certificate_chain, "the certificate chain")?;
        let key = inline(own.private_key, "the private key")?;
        let identity = identity(&chain)?;
        let Some(validator) = validation.custom_validator_config.and_then(|config| config.typed_config)
        else {
            return Ok(None);
        };
        let validator = SpiffeCertValidatorConfig::decode(validator.value.as_slice())
            .map_err(|error| SecretError::Decode("the validator", error))?;
        let domain = identity.trust_domain().to_string();
        let Some(found) = validator.trust_domains.into_iter().find(|bundle| bundle.name == domain) else {
            return Ok(None);
        };
        let roots = inline(found.trust_bundle, "the trust bundle")?;
        Ok(Some(Self { identity, chain, key, roots }))
    }
}

fn inline(source: Option<DataSource>, what: &'static str) -> Result<String, SecretError> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineString(text)) => Ok(text),
        _ => Err(SecretError::NotInline(what)),
    }
}

fn identity(chain: &str) -> Result<SpiffeId, SecretError> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|error| SecretError::Identity(error.to_string()))?;
    peer_spiffe_id(&chain).map_err(|error| SecretError::Identity(error.to_string()))
}

#[cfg(test)]
mod tests {
    use xds_proto::to_any;

    use super::*;

    #[test]
    fn half_of_the_secrets_is_not_enough_and_damage_is_an_error() {
        assert!(Material::read(&[]).unwrap().is_none());
        let half = Secret {
            name: "default".into(),
            r#type: Some(secret::Type::TlsCertificate(TlsCertificate::default())),
        };
        assert!(Material::read(&[to_any(&half)]).unwrap().is_none());
        let roots = Secret {
            name: "ROOTCA".into(),
            r#type: Some(secret::Type::ValidationContext(CertificateValidationContext::default())),
        };
        assert!(Material::read(&[to_any(&half), to_any(&roots)]).is_err(), "no chain in it");
        assert!(Material::read(&[Any { value: vec![0xff], ..Default::default() }]).is_err());
    }
}
