//! The first start: a join token for a certificate.

use std::net::{Ipv4Addr, Ipv6Addr};

use clustermesh::token::{JoinToken, Purpose, TokenError};
use ipnet::{Ipv4Net, Ipv6Net};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, CertificateDer, PeerPolicy, TrustBundles, Usage, client_config_pinned, csr, peer_spiffe_id,
};
use thiserror::Error;
use xds_proto::isthmus::bootstrap::v1::{
    RegisterNodeRequest, RegisterNodeResponse, bootstrap_client::BootstrapClient,
};

use super::{NodeState, renew::unix_now};

/// Why this node has no certificate.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RegisterError {
    #[error("--join: {0}")]
    Token(#[from] TokenError),
    #[error("no replica named in the token answers: {0}")]
    Unreachable(String),
    #[error("the control plane refuses to register this node: {0}")]
    Refused(String),
    #[error("the control plane's answer is unusable: {field} is {value:?}")]
    Answer { field: &'static str, value: String },
    #[error(transparent)]
    Tls(#[from] mesh_tls::Error),
}

/// Makes a key, trades the token for a certificate, and checks the answer against the root that the token pins.
///
/// # Errors
/// The token, the connection, or a refusal in the control plane's words.
pub async fn register(
    join: &str,
    node: &str,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
) -> Result<NodeState, RegisterError> {
    let token = JoinToken::decode(join)?;
    token.check(Purpose::Node, unix_now())?;
    let tls = client_config_pinned(token.root_sha256, &[ALPN_H2])?;
    // The signer decides the name; before registration nothing is known of the trust domain.
    let placeholder = TrustDomain::parse("unregistered.invalid").map_err(mesh_tls::Error::from)?;
    let (csr, key) = csr::generate(&SpiffeId::node(&placeholder, node))?;
    let request = RegisterNodeRequest {
        token: join.trim().to_owned(),
        node: node.to_owned(),
        address: address.to_string(),
        address6: address6.map(|address| address.to_string()).unwrap_or_default(),
        csr,
    };
    let mut last = "it names none".to_owned();
    for door in &token.doors {
        let channel = match mesh_tls::grpc::connect(door, tls.clone(), "replica.isthmus").await {
            Ok(channel) => channel,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        match BootstrapClient::new(channel).register_node(request.clone()).await {
            Ok(answer) => return accept(answer.into_inner(), &token, node, key.secret_der().to_vec()),
            Err(status) if status.code() == tonic::Code::Unavailable => last = status.message().to_owned(),
            Err(status) => return Err(RegisterError::Refused(status.message().to_owned())),
        }
    }
    Err(RegisterError::Unreachable(last))
}

/// Checks every field: what comes out is written to disk and used for years.
fn accept(
    answer: RegisterNodeResponse,
    token: &JoinToken,
    node: &str,
    key: Vec<u8>,
) -> Result<NodeState, RegisterError> {
    let bad = |field, value: &dyn ToString| RegisterError::Answer { field, value: value.to_string() };
    let trust_domain =
        TrustDomain::parse(&answer.trust_domain).map_err(|_| bad("trust_domain", &answer.trust_domain))?;
    let roots: Vec<_> = answer.roots.iter().cloned().map(CertificateDer::from).collect();
    if !roots.iter().any(|root| mesh_tls::fingerprint(root) == token.root_sha256) {
        return Err(bad("roots", &"without the root of the token"));
    }
    let mut bundles = TrustBundles::new();
    bundles.insert(trust_domain.clone(), roots)?;
    let chain: Vec<_> = answer.chain.iter().cloned().map(CertificateDer::from).collect();
    let id = peer_spiffe_id(&chain)?;
    if id != SpiffeId::node(&trust_domain, node) {
        return Err(bad("chain", &id));
    }
    let policy = PeerPolicy::OneOf(vec![id]);
    mesh_tls::verify_peer(&bundles, &policy, &chain, Usage::Client, rustls::pki_types::UnixTime::now())?;
    let cidr = |field, text: &String| text.parse::<Ipv4Net>().map_err(|_| bad(field, text));
    let pod_cidr = cidr("pod_cidr", &answer.pod_cidr)?;
    if pod_cidr.prefix_len() > 29 {
        return Err(bad("pod_cidr", &pod_cidr));
    }
    let pod_cidr6 = match answer.pod_cidr6.as_str() {
        "" => None,
        text => Some(text.parse::<Ipv6Net>().map_err(|_| bad("pod_cidr6", &text))?.trunc()),
    };
    // A pod's two addresses are at the same place in both.
    if pod_cidr6.is_some_and(|net| 128 - net.prefix_len() < 32 - pod_cidr.prefix_len()) {
        return Err(bad("pod_cidr6", &answer.pod_cidr6));
    }
    Ok(NodeState {
        node: node.to_owned(),
        cluster: answer.cluster,
        trust_domain,
        mesh_domain: answer.mesh_domain,
        pod_cidr: pod_cidr.trunc(),
        pod_cidr6,
        service_cidr: cidr("service_cidr", &answer.service_cidr)?,
        replicas: if answer.replicas.is_empty() { token.doors.clone() } else { answer.replicas },
        key,
        chain: answer.chain,
        roots: answer.roots,
    })
}
