//! A node that has registered as an agent does, and what it does on its connection.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clustermesh::token::JoinToken;
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, CertificateDer, Identity, PeerPolicy, TrustBundles, certified, client_config,
    client_config_pinned, csr, grpc::connect, shared_bundles, shared_identity,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Request, transport::Channel};
use xds_proto::isthmus::bootstrap::v1::{
    RegisterNodeRequest, ReportEndpointRequest, bootstrap_client::BootstrapClient,
    endpoints_client::EndpointsClient,
};

/// Longest wait for a call.
const CALL: Duration = Duration::from_secs(30);
/// What a replica's certificate answers to.
pub const REPLICA: &str = "replica.isthmus";

/// A registered node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    door: String,
    tls: Arc<rustls::ClientConfig>,
    /// First three parts of its slice's addresses.
    slice: String,
}

impl Node {
    /// Trades a token for a certificate.
    pub async fn register(token: &str, name: &str, address: &str) -> Result<Self> {
        let join = JoinToken::decode(token)?;
        let door = join.doors.first().context("the token names no door")?.clone();
        let pinned = client_config_pinned(join.root_sha256, &[ALPN_H2])?;
        let channel = connect(&door, pinned, REPLICA).await?;
        let (csr, key) = csr::generate(&SpiffeId::node(&TrustDomain::parse("unregistered.invalid")?, name))?;
        let request = RegisterNodeRequest {
            address6: String::new(),
            token: token.to_owned(),
            node: name.to_owned(),
            address: address.to_owned(),
            csr,
        };
        let answer = BootstrapClient::new(channel).register_node(request).await?.into_inner();
        let certificates =
            |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        let trust_domain = TrustDomain::parse(&answer.trust_domain)?;
        let mut bundles = TrustBundles::new();
        bundles.insert(trust_domain.clone(), certificates(answer.roots))?;
        let identity = certified(Identity { chain: certificates(answer.chain), key })?;
        let tls = client_config(
            Some(shared_identity(Some(identity))),
            shared_bundles(bundles),
            PeerPolicy::Replicas(trust_domain),
            &[ALPN_H2],
        )?;
        let (slice, _) = answer.pod_cidr.rsplit_once('.').context("the slice is no IPv4 network")?;
        Ok(Self { name: name.to_owned(), door, tls, slice: slice.to_owned() })
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Channel> {
        Ok(connect(&self.door, self.tls.clone(), REPLICA).await?)
    }

    /// A new connection, as nothing but bytes.
    pub async fn tunnel(&self) -> Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(&self.door).await?;
        tcp.set_nodelay(true)?;
        Ok(TlsConnector::from(self.tls.clone()).connect(ServerName::try_from(REPLICA)?, tcp).await?)
    }

    /// Reports where a workload of the namespace `bench` runs. Returns when that is durable.
    pub async fn report(&self, channel: Channel, workload: &str, host: usize, ready: bool) -> Result<u64> {
        let mut request = Request::new(ReportEndpointRequest {
            namespace: "bench".to_owned(),
            workload: workload.to_owned(),
            addresses: vec![format!("{}.{host}", self.slice)],
            ready,
        });
        request.set_timeout(CALL);
        Ok(EndpointsClient::new(channel).report(request).await?.into_inner().revision)
    }
}
