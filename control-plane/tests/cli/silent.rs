//! `apply --wait` when not everybody can be asked: what is not known is not done.

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

use crate::{
    nodes::{self, Node},
    process::{Replica, three, until},
};

/// Applies a service and waits for so long.
fn line(replica: &Replica, name: &str, seconds: u32) -> String {
    let file = replica.path(&format!("{name}.yaml"));
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: 80}}]}}}}\n"
    );
    std::fs::write(&file, text).unwrap();
    format!("apply -f {} --wait --timeout {seconds}s", file.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_does_not_succeed_while_a_replica_is_silent_or_an_agent_is_connected_nowhere() {
    let mut all = three(&[]).await;
    let (follow, mut second) = nodes::two(&all).await;

    all[2].signal(SIGSTOP);
    // Longer than anything takes that gives a replica up.
    let stopped = all[0].types(&line(&all[0], "a", 7)).await.ends(4);
    assert_eq!(stopped.out, "service/a created\n");
    let last = stopped.err.lines().last().unwrap();
    let address = all[2].address();
    for words in [
        "revision ",
        "1 of 2 data planes did not acknowledge it: agent~n2 (connected nowhere, unless it is connected to replica 3",
        &format!("replica 3 at {address} "),
        "did not answer, so that it is not known who else lacks it",
    ] {
        assert!(last.contains(words), "{words}: {last}");
    }
    // The same whoever is asked.
    let other = all[1].types(&line(&all[1], "a", 2)).await.ends(4);
    assert!(other.err.lines().last().unwrap().contains(&address), "{other:?}");

    all[2].signal(SIGCONT);
    until(&all[0].socket(), "it answers again", |status| status.replicas.iter().all(|r| r.reachable)).await;
    let again = line(&all[0], "a", 60);
    let (done, ()) = tokio::join!(all[0].types(&again), async {
        let sent = second.next().await.unwrap();
        second.ack(&sent).await;
    });
    done.ends(0);

    // An agent that is nowhere, though every replica answers.
    let absent = Node::register(&all[0], "n3").await;
    drop(absent);
    let follow_second = nodes::follow(second);
    let nowhere = all[0].types(&line(&all[0], "b", 2)).await.ends(4);
    let last = nowhere.err.lines().last().unwrap();
    assert!(
        last.contains("1 of 3 data planes did not acknowledge it: agent~n3 (connected nowhere);"),
        "{last}"
    );
    all[0].types("node remove n3").await.ends(0);
    all[0].types(&line(&all[0], "b", 60)).await.ends(0);
    follow.abort();
    follow_second.abort();
}
