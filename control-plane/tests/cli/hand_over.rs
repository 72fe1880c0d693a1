//! A leader that is told to stop hands over first.

use std::{sync::Arc, time::Duration};

use nix::sys::signal::Signal::SIGTERM;

use crate::{
    process::{names, three, until, well},
    writers::Clients,
};

/// A replica that hears no leader waits this long at least before it stands.
const SHORTEST_ELECTION: Duration = Duration::from_millis(1_100);
/// One of them must be undisturbed by whatever else this machine does.
const ROUNDS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_gets_sigterm_hands_over_in_less_time_than_an_election_and_loses_nothing() {
    let mut all = three(&[]).await;
    let clients = Arc::new(Clients::default());
    *clients.sockets.write().unwrap() = all.iter().map(|replica| replica.socket()).collect();
    clients.writing(2);
    all.iter().enumerate().for_each(|(n, replica)| clients.reading(n, replica.socket()));
    let mut gaps = Vec::new();
    for _ in 0..ROUNDS {
        let seen = until(&all[0].socket(), "all is well", |status| well(status, 3)).await;
        let leader = usize::try_from(seen.leader).unwrap() - 1;
        // Writers ask those that stay: what they meet is the change of the leader, not the end of a door.
        *clients.sockets.write().unwrap() =
            (0..3).filter(|n| *n != leader).map(|n| all[n].socket()).collect::<Vec<_>>();
        clients.going_on(20).await;
        clients.written.lock().unwrap().take_gap();
        all[leader].signal(SIGTERM);
        assert_eq!(all[leader].ended().await, Some(0));
        let said = all[leader].said();
        assert!(said.contains("handed leadership over"), "{said}");
        clients.going_on(20).await;
        gaps.push(clients.written.lock().unwrap().take_gap());
        let heir = until(&all[(leader + 1) % 3].socket(), "another leads", |status| {
            status.leader != 0 && status.leader != seen.leader
        })
        .await;
        assert_ne!(heir.leader, seen.leader);
        all[leader].start(&[], None);
        for replica in &all {
            until(&replica.socket(), "three voters again", |status| well(status, 3)).await;
        }
        if gaps.last().is_some_and(|gap| *gap < SHORTEST_ELECTION / 2) {
            break;
        }
    }
    let written = clients.stop().await;
    println!("gaps {gaps:?}, {} writes", written.len());
    assert!(gaps.iter().min().unwrap() < &SHORTEST_ELECTION, "{gaps:?}");
    for replica in &all {
        let names: std::collections::BTreeSet<String> = names(&replica.socket()).await.into_iter().collect();
        let lost: Vec<&String> = written.keys().filter(|name| !names.contains(*name)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
    clients.recorder.holds(0..3, 10);
}
