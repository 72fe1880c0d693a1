//! `replica promote --demote`, and a replica that was removed and does not know it.

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

use crate::process::{Replica, apply, metric, names, three, until, voters, well};

async fn roles(by: &Replica) -> Vec<String> {
    by.types("replica list").await.ends(0).rows("ID ").iter().map(|row| row["ROLE"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_demoted_the_leader_too_and_promoted_again_and_the_last_one_stays() {
    let all = three(&[]).await;
    let demoted = all[1].types("replica promote 3 --demote").await.ends(0);
    assert_eq!(demoted.out, "replica/3 demoted\n");
    until(&all[0].socket(), "two voters and a learner", |status| {
        voters(status) == 2 && status.replicas.len() == 3
    })
    .await;
    assert_eq!(roles(&all[1]).await, ["leader", "follower", "learner"]);
    // The learner follows still: it is asked, and has everything.
    let revision = apply(&all[0].socket(), "seen-by-the-learner").await.unwrap();
    assert_eq!(names(&all[2].socket()).await, ["seen-by-the-learner"]);
    until(&all[2].socket(), "it applies", |status| status.revision >= revision).await;

    let leader = all[1].types("replica promote 1 --demote").await.ends(0);
    assert_eq!(leader.out, "replica/1 demoted\n");
    until(&all[1].socket(), "the other one leads", |status| status.leader == 2 && voters(status) == 1).await;
    assert_eq!(roles(&all[0]).await, ["learner", "leader", "learner"]);
    apply(&all[0].socket(), "by-way-of-a-learner").await.unwrap();
    all[0].types("replica promote 2 --demote").await.ends(1).complains(&["2", "is the last voter"]);
    for id in [1, 3] {
        let promoted = all[2].types(&format!("replica promote {id}")).await.ends(0);
        assert_eq!(promoted.out, format!("replica/{id} promoted\n"));
    }
    until(&all[2].socket(), "three voters", |status| well(status, 3)).await;
    // Saying it again changes nothing.
    all[2].types("replica promote 3").await.ends(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_replica_that_does_not_know_it_disturbs_nobody() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // No election but those that somebody asks for: 5.5 s of silence are needed.
    let slow = ["--heartbeat", "1s"];
    let mut all = three(&slow).await;
    let at = format!("127.0.0.1:{free}");
    all[1].signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(all[1].ended().await, Some(0));
    all[1].start(&[&slow[..], &["--metrics", &at]].concat(), None);
    let seen = until(&all[0].socket(), "three voters", |status| well(status, 3)).await;
    assert_eq!(seen.leader, 1);
    let term = metric(free, "isthmus_raft_term").await;

    // It hears nothing of what follows.
    all[2].signal(SIGSTOP);
    all[0].types("replica remove 3").await.ends(0);
    apply(&all[0].socket(), "without-it").await.unwrap();
    all[2].signal(SIGCONT);
    assert_eq!(all[2].ended().await, Some(77));
    assert!(all[2].said().contains("replica 3 was removed from the cluster"), "{}", all[2].said());
    // Nor does it come back, however often it is started: its certificate is good, its number is not.
    for _ in 0..2 {
        all[2].start(&slow, None);
        apply(&all[1].socket(), "while-it-knocks").await.unwrap();
        assert_eq!(all[2].ended().await, Some(77), "{}", all[2].said());
    }
    let seen = until(&all[1].socket(), "two voters", |status| well(status, 2)).await;
    assert_eq!(seen.leader, 1, "the leader was not deposed");
    assert_eq!(metric(free, "isthmus_raft_term").await, term, "nobody was made to vote");

    // Two are left, so one of them is no majority: the removed one is not counted.
    all[0].signal(SIGKILL);
    assert_eq!(all[0].ended().await, None);
    all[2].start(&slow, None);
    let alone = until(&all[1].socket(), "it is alone", |status| status.no_quorum.is_some()).await;
    assert_eq!(alone.no_quorum.unwrap().voters, 2);
}
