//! Agents that are connected nowhere.

use std::time::Duration;

use xds_proto::{
    isthmus::{
        admin::v1::{DataPlaneStatus, StatusRequest},
        agent::v1::Service,
    },
    type_url,
};

use crate::{
    common::{Cluster, SOON},
    raw::Raw,
};

async fn rows(cluster: &mut Cluster) -> Vec<DataPlaneStatus> {
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.departures, [], "that is between replicas");
    status.data_planes.into_iter().filter(|plane| plane.id == "agent~n1").collect()
}

#[tokio::test]
async fn a_registered_node_whose_agent_is_connected_nowhere_is_shown_and_since_when() {
    let mut cluster = Cluster::start("west").await;
    let node = cluster.node("n1").await;
    let never = rows(&mut cluster).await;
    assert_eq!((never.len(), never[0].state.as_str(), never[0].since_unix_ms), (1, "disconnected", 0));
    let mut agent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    agent.catch_up().await;
    let here = rows(&mut cluster).await;
    assert_eq!(here.len(), 1);
    assert_ne!(here[0].state, "disconnected");
    drop(agent);
    let gone = async {
        loop {
            let rows = rows(&mut cluster).await;
            if rows[0].state == "disconnected" {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(SOON, gone).await.unwrap();
    assert_eq!(gone.len(), 1);
    assert!(gone[0].since_unix_ms >= here[0].connected_unix_ms, "{gone:?}");
}
