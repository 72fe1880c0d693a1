//! What a replica refuses to open.

use crate::process::{Replica, WEST};

#[tokio::test]
async fn metrics_are_not_served_to_a_network_unless_it_is_said() {
    for at in ["0.0.0.0:0", "192.0.2.1:9464", "[::]:0"] {
        let flags: Vec<&str> = WEST.iter().copied().chain(["--metrics", at]).collect();
        let mut replica = Replica::first_start(&flags, None);
        assert_eq!(replica.ended().await, Some(64), "{}", replica.said());
        let said = replica.said();
        assert!(said.contains(at) && said.contains("--metrics-plain") && said.lines().count() == 1, "{said}");
        assert!(!replica.data().exists(), "nothing was begun");
    }
    let flags: Vec<&str> =
        WEST.iter().copied().chain(["--metrics", "0.0.0.0:0", "--metrics-plain"]).collect();
    let replica = Replica::first_start(&flags, None);
    crate::process::until(&replica.socket(), "it serves", |status| status.leader == 1).await;
}
