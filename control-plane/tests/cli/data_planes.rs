//! `proxy-status`, `apply --wait` and `node`: data planes at any replica, seen from any other.

use std::collections::BTreeMap;

use nix::sys::signal::Signal::SIGKILL;

use crate::{
    nodes,
    process::{Replica, three, until},
};

fn service(replica: &Replica, name: &str) -> String {
    let file = replica.path(&format!("{name}.yaml"));
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: 80}}]}}}}\n"
    );
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// The rows of `proxy-status`, by client.
async fn clients(replica: &Replica) -> BTreeMap<String, BTreeMap<String, String>> {
    let typed = replica.types("proxy-status").await.ends(0);
    typed.rows("CLIENT").into_iter().map(|row| (row["CLIENT"].clone(), row)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_planes_of_every_replica_are_shown_waited_for_and_revoked_at_any_of_them() {
    let mut all = three(&[]).await;
    let empty = all[0].types("proxy-status").await.ends(0);
    assert_eq!((empty.out.as_str(), empty.err.as_str()), ("", "no data plane is connected\n"));
    let (follow, mut second) = nodes::two(&all).await;

    let good =
        all[0].types(&format!("apply -f {} --wait --timeout 20ms", service(&all[0], "a"))).await.ends(4);
    assert_eq!(good.out, "service/a created\n");
    assert!(good.err.lines().last().unwrap().contains("agent~n2"), "{good:?}");
    let sent = second.next().await.unwrap();
    second.ack(&sent).await;
    all[0].types(&format!("apply -f {} --wait", service(&all[0], "a"))).await.ends(0);
    let seen = clients(&all[0]).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["agent~n1", "agent~n2"]);
    assert_eq!(
        (seen["agent~n1"]["REPLICA"].as_str(), seen["agent~n2"]["REPLICA"].as_str()),
        ("replica-2", "replica-3")
    );
    assert_eq!(seen["agent~n2"]["OTHERS"], "SYNCED (1)");
    let table = all[0].types("proxy-status").await.out;
    for replica in &all[1..] {
        assert_eq!(replica.types("proxy-status").await.out, table, "the same whoever is asked");
    }
    let detail = all[0].types("proxy-status n2").await.ends(0);
    assert!(detail.out.starts_with("agent~n2 at replica-3\n"), "{detail:?}");
    assert_eq!(detail.rows("TYPE")[0]["NAME"], "shop/a");
    all[0].types("proxy-status ghost").await.ends(3).complains(&["no data plane ghost is connected"]);

    // What it refuses is shown with its words, at once and later.
    let file = service(&all[1], "b");
    let line = format!("apply -f {file} --wait");
    let (refused, ()) = tokio::join!(all[1].types(&line), async {
        let bad = second.next().await.unwrap();
        second.nack(&bad, "no room in the map").await;
    });
    let refused = refused.ends(6);
    assert_eq!(refused.out, "service/b created\n");
    let last = refused.err.lines().last().unwrap();
    assert!(last.contains("agent~n2") && last.contains("no room in the map"), "{refused:?}");
    assert_eq!(clients(&all[0]).await["agent~n2"]["OTHERS"], "ERROR (1 of 2)");
    let detail = all[0].types("proxy-status agent~n2").await.ends(0).rows("TYPE");
    let row = detail.iter().find(|row| row["NAME"] == "shop/b").unwrap();
    assert!(row["STATUS"] == "ERROR" && row["ERROR"].contains("no room in the map"), "{row:?}");
    let shown = all[0].types("status").await.ends(0).below("Data planes").rows("ID ");
    assert_eq!(shown.iter().map(|row| row["STATE"].as_str()).collect::<Vec<_>>(), ["synced", "refused"]);
    assert!(shown[1]["LAST-ERROR"].ends_with("no room in the map"), "{shown:?}");
    let json = all[0].types("status -o json").await.ends(0).json();
    let states: Vec<&str> =
        json["dataPlanes"].as_array().unwrap().iter().map(|d| d["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["synced", "refused"]);

    let nodes = all[2].types("node list").await.ends(0).rows("NODE");
    assert_eq!(nodes.iter().map(|row| row["NODE"].as_str()).collect::<Vec<_>>(), ["n1", "n2"]);
    all[2].types("node revoke ghost").await.ends(3).complains(&["there is no node"]);
    all[2].types("node remove ghost").await.ends(3).complains(&["there is no node"]);
    all[0].types("token create --for node").await.ends(0);
    let revoked = all[1].types("node revoke n2").await.ends(0);
    assert!(revoked.out.starts_with("node/n2 revoked"), "{revoked:?}");
    revoked.complains(&["1 unused token lets any node in", "clustermesh token list"]);
    assert!(second.next().await.is_err(), "its stream is closed");
    until(&all[0].socket(), "it is connected no more", |status| status.data_planes.len() == 1).await;
    let removed = all[0].types("node remove n1").await.ends(0);
    assert!(removed.out.starts_with("node/n1 removed"), "{removed:?}");
    let empty = all[0].types("node list").await.ends(0);
    assert_eq!((empty.out.as_str(), empty.err.as_str()), ("", "no node has registered\n"));
    follow.await.unwrap();

    all[2].signal(SIGKILL);
    all[2].ended().await;
    let without = all[0].types("proxy-status").await.ends(0);
    assert!(without.err.contains("no answer of replica 3: data planes"), "{without:?}");
}
