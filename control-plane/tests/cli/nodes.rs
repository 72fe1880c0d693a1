//! A node's side of the mesh door: registration, and a channel to any replica.

use clustermesh::token::JoinToken;
use mesh_tls::{ALPN_H2, PeerPolicy, SharedIdentity, TrustBundles, client_config, grpc, shared_bundles};
use tokio::task::JoinHandle;
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

/// Two nodes that have caught up: n1 at the second replica follows by itself, and n2 at the third answers what the test
/// says.
pub async fn two(all: &[Replica]) -> (JoinHandle<()>, Raw) {
    let nodes = [Node::register(&all[0], "n1").await, Node::register(&all[0], "n2").await];
    for replica in all {
        // A list is answered once the views know its revision: the nodes are served from then on.
        replica.types("get all -A").await.ends(0);
    }
    let (mut first, mut second) = (nodes[0].subscribe(&all[1]).await, nodes[1].subscribe(&all[2]).await);
    first.catch_up().await;
    second.catch_up().await;
    (follow(first), second)
}

/// ACKs whatever comes, as an agent does, until the stream ends.
pub fn follow(mut stream: Raw) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(response) = stream.next_or_end().await {
            stream.ack(&response).await;
        }
    })
}
