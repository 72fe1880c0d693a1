//! The joining replica's side: a token for an issuer, a number, and the roots.

use std::{path::Path, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use clustermesh::token::{JoinToken, Purpose, TokenError};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, CertificateDer, client_config_pinned, csr, fingerprint, grpc, issue, seal::SealingKey,
};
use thiserror::Error;
use xds_proto::isthmus::bootstrap::v1::{
    RegisterReplicaRequest, RegisterReplicaResponse, bootstrap_client::BootstrapClient,
};

use super::{Ca, CaError, ReplicaFile, unix};
use crate::group::Group;

/// Why a replica can't join.
#[derive(Debug, Error)]
pub enum JoinError {
    #[allow(missing_docs)]
    #[error("--join: {0}")]
    Token(TokenError),
    /// Every door of the token was tried.
    #[error("no replica named in the token admits this one: {0}")]
    Refused(String),
    /// The answer can't be what the token promised.
    #[error("the cluster's answer is unusable: {0}")]
    Answer(String),
    #[allow(missing_docs)]
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// Not as the error's source: its sentence is this one's already.
impl From<TokenError> for JoinError {
    fn from(error: TokenError) -> Self {
        JoinError::Token(error)
    }
}

impl From<mesh_tls::Error> for JoinError {
    fn from(error: mesh_tls::Error) -> Self {
        JoinError::Ca(error.into())
    }
}

/// Asks the token's cluster for admission and keeps what it answers. `address` is how others will reach this
/// replica's mesh door.
///
/// # Errors
/// The token, the connection, a refusal, or an answer that does not lead to the root of the token.
pub async fn join(folder: &Path, token_text: &str, address: &str, now: SystemTime) -> Result<(), JoinError> {
    let token = JoinToken::decode(token_text)?;
    token.check(Purpose::Replica, unix(now))?;
    let unknown = TrustDomain::parse("unregistered.invalid").map_err(|e| JoinError::Answer(e.to_string()))?;
    // The signer decides the names.
    let issuer_key = issue::Issuer::generate()?;
    let sealing = SealingKey::generate()?;
    let (own_csr, _) = csr::generate(&SpiffeId::replica(&unknown, 0))?;
    let request = RegisterReplicaRequest {
        token: token_text.trim().to_owned(),
        address: address.to_owned(),
        csr: own_csr,
        issuer_csr: issuer_key.csr(&unknown)?,
        sealing_key: sealing.public().to_vec(),
    };
    let answer = ask(&token, request).await?;
    let group = Group::named(answer.raft_group.clone());
    let (replica, certificate) = accept(&token, answer)?;
    let issuer = issuer_key.certified(certificate)?;
    if issuer.trust_domain() != &replica.trust_domain {
        return Err(JoinError::Answer(format!("the issuer is of {}", issuer.trust_domain())));
    }
    // Before the keys: without it they would look like those of a replica whose log is gone.
    group.keep(folder).map_err(|error| JoinError::Answer(error.to_string()))?;
    Ca::keep(folder, &replica, &issuer, &sealing)?;
    Ok(())
}

/// Tries every door: one that joined a moment ago may have no copy of the root's key yet.
async fn ask(
    token: &JoinToken,
    request: RegisterReplicaRequest,
) -> Result<RegisterReplicaResponse, JoinError> {
    let tls = client_config_pinned(token.root_sha256, &[ALPN_H2])?;
    let mut reasons = Vec::new();
    for door in &token.doors {
        let channel = match grpc::connect(door, tls.clone(), "replica.isthmus").await {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        match BootstrapClient::new(channel).register_replica(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => reasons.push(format!("{door}: {}", status.message())),
        }
    }
    Err(JoinError::Refused(reasons.join("; ")))
}

fn accept(
    token: &JoinToken,
    answer: RegisterReplicaResponse,
) -> Result<(ReplicaFile, CertificateDer<'static>), JoinError> {
    let bad = |reason: String| JoinError::Answer(reason);
    let trust_domain = TrustDomain::parse(&answer.trust_domain).map_err(|e| bad(e.to_string()))?;
    let pinned = |root: &Vec<u8>| fingerprint(&CertificateDer::from(root.as_slice())) == token.root_sha256;
    if !answer.roots.iter().any(pinned) {
        return Err(bad("its roots lack that of the token".to_owned()));
    }
    if answer.cluster != token.cluster || answer.replica_id == 0 {
        return Err(bad(format!("cluster {:?}, replica {}", answer.cluster, answer.replica_id)));
    }
    let certificate = answer.issuer_chain.into_iter().next().ok_or_else(|| bad("no issuer".to_owned()))?;
    let replica = ReplicaFile {
        id: answer.replica_id,
        cluster: answer.cluster,
        trust_domain,
        roots: answer.roots.iter().map(|root| STANDARD.encode(root)).collect(),
    };
    Ok((replica, certificate.into()))
}
