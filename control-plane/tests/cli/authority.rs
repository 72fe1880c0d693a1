//! `ca status` and `ca rotate` while three replicas run and a node does not follow.

use crate::{nodes::Node, process::three};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_says_whom_it_waits_for_and_ends_once_nobody_is() {
    let all = three(&[]).await;
    let sealed = crate::process::until_typed(&all[0], "ca status", "each has a copy", |typed| {
        let roots = typed.rows("ROOT");
        roots.len() == 1 && roots[0]["SEALED TO"] == "1,2,3"
    })
    .await;
    let root = sealed.rows("ROOT")[0]["ROOT"].clone();
    let issuers = sealed.rows("REPLICA");
    assert_eq!(issuers.iter().map(|row| row["REPLICA"].as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(issuers.iter().all(|row| row["ROOT"] == root && row["LEAVES"] == "24h"), "{issuers:?}");
    assert!(sealed.out.ends_with("no rotation is under way (0 so far)\n"), "{sealed:?}");

    let node = Node::register(&all[0], "n1").await;
    let waits = all[1].types("ca rotate --timeout 3s").await.ends(4);
    waits.complains(&["1/3 preparing", "waiting for node n1", "clustermesh ca status"]);
    let shown = all[2].types("ca status").await.ends(0);
    assert_eq!(
        shown.rows("ROOT").iter().map(|row| row["ACTIVE"].as_str()).collect::<Vec<_>>(),
        ["yes", "no"]
    );
    assert!(shown.out.contains("rotation 1: 1/3 preparing"), "{shown:?}");
    assert_eq!(all[2].types("ca status -o json").await.ends(0).json()["rotation"]["waiting"], 1);

    let done = all[2].types("ca rotate --skip-unconfirmed --retire-now --timeout 60s").await.ends(0);
    let last = done.out.lines().last().unwrap();
    assert!(last.starts_with("the root is ") && last.ends_with("; nothing chains to another"), "{done:?}");
    let after = all[0].types("ca status").await.ends(0);
    let roots = after.rows("ROOT");
    assert!(roots.len() == 1 && roots[0]["ROOT"] != root && roots[0]["SEALED TO"] == "1,2,3", "{after:?}");
    assert!(after.out.contains("no rotation is under way (1 so far)"), "{after:?}");
    // The cluster is as well as before, under the new root.
    crate::process::until(&all[1].socket(), "three voters", |status| crate::process::well(status, 3)).await;
    drop(node);
}
