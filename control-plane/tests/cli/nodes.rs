//! A node's side of the mesh door: registration, and a channel to any replica.

use clustermesh::token::JoinToken;
use mesh_tls::{ALPN_H2, PeerPolicy, SharedIdentity, TrustBundles, client_config, grpc, shared_bundles};
use tonic::transport::Channel;

use crate::{common::register, process::Replica, raw::Raw};

/// A registered node.
pub struct Node {
    identity: SharedIdentity,
    bundles: TrustBundles,
    domain: mesh_model::identity::TrustDomain,
}

impl Node {
    pub async fn register(replica: &Replica, name: &str) -> Self {
        let token = replica.types(&format!("token create --for node --node {name}")).await.ends(0);
        let token = token.out.trim();
        JoinToken::decode(token).unwrap();
        let (answer, identity) = register(&replica.address(), token, name).await.unwrap();
        let domain = mesh_model::identity::TrustDomain::parse(&answer.trust_domain).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.insert(domain.clone(), answer.roots.iter().cloned().map(Into::into).collect()).unwrap();
        Self { identity, bundles, domain }
    }

    pub async fn channel(&self, replica: &Replica) -> Channel {
        let policy = PeerPolicy::Replicas(self.domain.clone());
        let bundles = shared_bundles(self.bundles.clone());
        let tls = client_config(Some(self.identity.clone()), bundles, policy, &[ALPN_H2]).unwrap();
        grpc::connect(&replica.address(), tls, "replica.isthmus").await.unwrap()
    }

    /// Subscribes to the services at one replica. The replica may not know of the node yet.
    pub async fn subscribe(&self, replica: &Replica) -> Raw {
        let services = xds_proto::type_url::<xds_proto::isthmus::agent::v1::Service>();
        Raw::open(self.channel(replica).await, &services).await.unwrap()
    }
}
