//! The root of a cluster is replaced while a peer trusts it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, until};
use mesh_store::fingerprint_of;
use tonic::transport::Channel;
use xds_proto::isthmus::{
    admin::v1::JoinRequest,
    ca::v1::{RotateRequest, certificate_authority_client::CertificateAuthorityClient},
};

fn authority(cluster: &Cluster) -> CertificateAuthorityClient<Channel> {
    CertificateAuthorityClient::new(cluster.admin_channel.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_the_new_root_before_it_signs_and_forgets_the_old_one_after() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    let token = east.token("peer").await;
    west.admin.join(JoinRequest { token }).await.unwrap();
    let old = fingerprint_of(&west.running.app.ca.roots()[0]);
    until(&west, "the key is sealed", |s| s.authority.roots.values().all(|root| root.sealed.len() == 1)).await;
    authority(&west).rotate(RotateRequest::default()).await.unwrap();
    let roots = |state: &mesh_store::State| -> Vec<String> {
        state.peers["west"].roots.iter().map(|der| fingerprint_of(der)).collect()
    };
    // West does not go on before east has confirmed, so both roots are seen there.
    until(&west, "the peer has confirmed", |state| {
        state.authority.confirmed_peers.get("east").is_some_and(|told| told.generation >= 2)
            || state.authority.rotation.is_none()
    })
    .await;
    until(&west, "the rotation is over", |state| state.authority.rotation.is_none()).await;
    until(&east, "the old root is gone", |state| {
        let roots = roots(state);
        roots.len() == 1 && roots[0] != old
    })
    .await;
    assert!(west.running.app.replica.applied().authority.confirmed_peers.contains_key("east"));
}
