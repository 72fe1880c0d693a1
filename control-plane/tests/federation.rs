//! Two clusters in one process: one command joins them, and each imports what the other exports.

#![allow(clippy::unwrap_used)]

mod common;

use clustermesh::token::JoinToken;
use common::{Cluster, SOON, until};
use mesh_model::resource::NamespacedName;
use tonic::Code;
use xds_proto::isthmus::admin::v1::{JoinRequest, StatusRequest};

fn exported(service: &str) -> String {
    format!(
        "\
apiVersion: isthmus.io/v1
kind: Workload
metadata: {{name: {service}-1, namespace: shop, labels: {{app: {service}}}}}
spec: {{serviceAccount: {service}, proxy: sidecar, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: shop}}
spec: {{selector: {{app: {service}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {{name: {service}, namespace: shop}}"
    )
}

async fn join(cluster: &mut Cluster, token: &str) -> Result<Vec<String>, tonic::Status> {
    let answer = cluster.admin.join(JoinRequest { token: token.to_owned() }).await?;
    Ok(answer.into_inner().imported_services)
}

#[tokio::test]
async fn one_join_makes_each_cluster_import_what_the_other_exports() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    west.apply(&exported("pay")).await.unwrap();
    east.apply(&exported("stock")).await.unwrap();
    let token = east.token("peer").await;
    assert_eq!(join(&mut west, &token).await.unwrap(), ["shop/stock"]);
    let imports = |peer: &'static str, service: &'static str| {
        move |state: &mesh_store::State| {
            let name = NamespacedName::new("shop", service);
            state.peers.get(peer).is_some_and(|p| p.imports.contains_key(&name))
        }
    };
    until(&east, "east has west's service", imports("west", "pay")).await;
    until(&west, "west has east's service", imports("east", "stock")).await;

    // Later changes follow by themselves, removals too.
    east.apply(&exported("gifts")).await.unwrap();
    until(&west, "a service that was exported later", imports("east", "gifts")).await;
    let gone = xds_proto::isthmus::admin::v1::ObjectRef {
        kind: "serviceexport".to_owned(),
        namespace: "shop".to_owned(),
        name: "stock".to_owned(),
    };
    let request = xds_proto::isthmus::admin::v1::DeleteRequest { objects: vec![gone] };
    east.admin.delete(request).await.unwrap();
    until(&west, "a service that is exported no more", |state| !imports("east", "stock")(state)).await;

    let connected = async {
        loop {
            let status = west.admin.status(StatusRequest {}).await.unwrap().into_inner();
            if status.peers[0].state == "connected" {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(SOON, connected).await.unwrap();
    assert_eq!((status.peers[0].cluster.as_str(), status.peers[0].imported_services), ("east", 1));
    assert!(
        status.data_planes.iter().any(|plane| plane.kind == "peer" && plane.id == "peer~east"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_join_that_is_refused_changes_neither_cluster() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    let token = east.token("peer").await;
    let (before_west, before_east) = (west.revision().await, east.revision().await);

    let status = join(&mut east, &token).await.unwrap_err();
    assert!(status.message().contains("cannot join itself"), "{status}");
    let status = join(&mut west, "isthmus1.nonsense").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let forged = JoinToken { secret: [9; 32], ..JoinToken::decode(&token).unwrap() }.encode().unwrap();
    let status = join(&mut west, &forged).await.unwrap_err();
    assert!(status.message().contains("\"east\" refuses"), "{status}");
    // The right door, but not the root that the token promises.
    let pinned = JoinToken { root_sha256: [1; 32], ..JoinToken::decode(&token).unwrap() }.encode().unwrap();
    assert_eq!(join(&mut west, &pinned).await.unwrap_err().code(), Code::Unavailable);
    // A cluster of the same name and trust domain.
    let mut twin = Cluster::start("east").await;
    assert!(join(&mut twin, &token).await.is_err());

    assert_eq!((west.revision().await, east.revision().await), (before_west, before_east));
    join(&mut west, &token).await.unwrap();
    let status = join(&mut west, &token).await.unwrap_err();
    assert!(status.message().contains("used by \"cluster west\""), "{status}");
}
