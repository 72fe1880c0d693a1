//! Real replicas, one process each, on loopback: the group grows and shrinks under writes and reads, a survivor says
//! that it is alone, and a new group is made of its disk.

#![allow(clippy::unwrap_used)]

#[path = "common/history.rs"]
mod history;
#[path = "common/process.rs"]
mod process;
#[path = "common/writers.rs"]
mod writers;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Instant,
};

use mesh_tls::grpc;
use process::{Replica, WEST, answered, apply, metric, names, token, until, voters};
use tonic::Code;
use writers::Clients;
use xds_proto::isthmus::admin::v1::{
    RemoveReplicaRequest, ReplicaStatus, SetReplicaRoleRequest, replicas_client::ReplicasClient,
};

const WRITERS: usize = 3;
/// By each of the readers.
const LEAST_READS: usize = 10;
/// The longest there is, so that no election comes of what else this machine does: 5.5 s without a leader.
const SLOW: [&str; 2] = ["--heartbeat", "1s"];
/// The heir's election. A leader that just vanished would cost time besides, and any further election a term.
const HAND_OVER: u64 = 1;

/// One of the replicas, and where its metrics are.
struct Machine {
    replica: Replica,
    metrics: u16,
}

impl Machine {
    fn first_start(flags: &[&str], token: Option<&str>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let metrics = ["--metrics".to_owned(), at.to_string()];
        let flags: Vec<&str> =
            flags.iter().copied().chain(SLOW).chain(metrics.iter().map(String::as_str)).collect();
        Self { replica: Replica::first_start(&flags, token), metrics: at.port() }
    }

    fn socket(&self) -> PathBuf {
        self.replica.socket()
    }

    async fn term(&self) -> u64 {
        metric(self.metrics, "isthmus_raft_term").await
    }
}

/// Ends a phase: not one write was refused or given up, whatever changed. Between one leader and the next a write can
/// only wait, so that is what unavailable means; how long it was is told, and not judged by this machine's clock.
fn phase(clients: &Clients, what: &str) {
    let mut written = clients.written.lock().unwrap();
    let (count, gap) = (written.revisions.len(), written.take_gap());
    println!("{what}: {count} writes, longest gap {gap:?}");
    assert!(written.failures.is_empty(), "{what}: {:#?}", written.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_and_shrinks_to_three_while_it_is_written_to_and_read_without_one_failed_write()
 {
    let mut all: BTreeMap<u64, Machine> = BTreeMap::new();
    all.insert(1, Machine::first_start(&WEST, None));
    let home = all[&1].socket();
    until(&home, "the first leads", |status| status.leader == 1).await;

    let clients = Arc::new(Clients::default());
    clients.sockets.write().unwrap().push(home.clone());
    clients.writing(WRITERS);
    clients.reading(1, home.clone());
    let founded = all[&1].term().await;

    for id in [2, 3] {
        all.insert(id, Machine::first_start(&[], Some(&token(&home, false).await)));
        // One after the other: the numbers are given in the order of their coming.
        until(&home, "it is listed", |status| status.replicas.len() as u64 == id).await;
        clients.reading(id as usize, all[&id].socket());
    }
    until(&home, "three voters", |status| voters(status) == 3).await;
    clients.sockets.write().unwrap().extend([all[&2].socket(), all[&3].socket()]);
    clients.going_on(20).await;
    phase(&clients, "1 to 3");
    assert_eq!(all[&1].term().await, founded, "who comes costs no election");

    all.insert(4, Machine::first_start(&[], Some(&token(&home, true).await)));
    until(&home, "it is listed", |status| status.replicas.len() == 4).await;
    all.insert(5, Machine::first_start(&[], Some(&token(&home, false).await)));
    let seen = until(&home, "four voters and a learner", |status| {
        voters(status) == 4 && status.replicas.iter().filter(|replica| replica.role == "learner").count() == 1
    })
    .await;
    [4, 5].iter().for_each(|id| clients.reading(*id as usize, all[id].socket()));
    let learner = seen.replicas.iter().find(|replica| replica.role == "learner").unwrap().id;
    let mut changes = ReplicasClient::new(grpc::connect_unix(&home).await.unwrap());
    let promote = SetReplicaRoleRequest { id: learner, learner: false };
    answered("the promotion", changes.set_role(promote)).await.unwrap();
    until(&home, "five voters", |status| voters(status) == 5).await;
    clients.going_on(20).await;
    phase(&clients, "3 to 5");
    assert_eq!(all[&1].term().await, founded, "who is promoted costs no election");

    // Any replica is asked, and tells the same of all.
    let asked = all[&3].socket();
    let seen = until(&asked, "all are known", |status| {
        status.replicas.len() == 5
            && status.replicas.iter().all(|r| r.reachable && r.lag_known && r.applied > 0)
    })
    .await;
    // The leader, and then one that is not: who inherits is not for the test to say.
    let (mut term, mut leader) = (founded, seen.leader);
    for (leads, costs) in [(true, HAND_OVER), (false, 0)] {
        let gone = all.keys().copied().find(|id| (*id == leader) == leads).unwrap();
        // By way of one that stays, whoever that is.
        let stays = all.keys().copied().find(|id| *id != gone).unwrap();
        let socket = all[&stays].socket();
        clients.forsake(&all[&gone].socket()).await;
        let mut changes = ReplicasClient::new(grpc::connect_unix(&socket).await.unwrap());
        let id = gone;
        answered("the removal", changes.remove(RemoveReplicaRequest { id })).await.unwrap();
        until(&socket, "it is gone", |status| status.replicas.iter().all(|replica| replica.id != id)).await;
        let mut process = all.remove(&gone).unwrap().replica;
        assert_eq!(process.ended().await, Some(77), "replica {gone}");
        let said = process.said();
        assert!(said.contains(&format!("replica {gone} was removed from the cluster")), "{said}");
        clients.going_on(20).await;
        phase(&clients, &format!("without replica {gone}"));
        let now = all[&stays].term().await;
        println!("replica {gone} is gone: term {term} to {now}");
        assert_eq!(now - term, costs, "elections");
        term = now;
        leader =
            until(&socket, "one leads", |status| status.leader != 0 && status.leader != gone).await.leader;
    }
    let socket = all.values().next().unwrap().socket();
    until(&socket, "three voters", |status| voters(status) == 3 && status.leader != 0).await;
    let written = clients.stop().await;
    let mut revisions: Vec<u64> = written.values().copied().collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), written.len(), "two writes were given the same revision");
    for machine in all.values() {
        let names: BTreeSet<String> = names(&machine.socket()).await.into_iter().collect();
        let lost: Vec<&String> = written.keys().filter(|name| !names.contains(*name)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
    clients.recorder.holds(1..=5, LEAST_READS);
}

fn recover(replica: &Replica, extra: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
    let output = command.args(["recover", "--data-dir"]).arg(replica.data()).args(extra).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_says_that_it_is_alone_and_becomes_a_cluster_again() {
    use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
    let mut first = Replica::first_start(&WEST, None);
    until(&first.socket(), "the first leads", |status| status.leader == 1).await;
    let mut second = Replica::first_start(&[], Some(&token(&first.socket(), false).await));
    let mut third = Replica::first_start(&[], Some(&token(&first.socket(), false).await));
    until(&first.socket(), "three voters", |status| voters(status) == 3).await;
    let revision = apply(&first.socket(), "kept").await.unwrap();
    let survivor =
        until(&second.socket(), "it has arrived", |status| status.revision >= revision).await.answered_by;

    for lost in [&mut first, &mut third] {
        lost.signal(SIGKILL);
        assert_eq!(lost.ended().await, None);
    }
    let alone =
        until(&second.socket(), "it knows that it is alone", |status| status.no_quorum.is_some()).await;
    let lost = alone.no_quorum.unwrap();
    assert_eq!((lost.reachable, lost.voters, alone.leader), (1, 3, 0));
    assert!(lost.sentence.starts_with("no quorum: 1 of 3 replicas reachable, since "), "{}", lost.sentence);
    let of = |replica: &ReplicaStatus| (replica.id == survivor, replica.reachable, replica.voter);
    assert!(alone.replicas.iter().map(of).all(|(own, reachable, voter)| voter && own == reachable));
    let began = Instant::now();
    let refused = apply(&second.socket(), "refused").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("no quorum: 1 of 3"), "{refused}");
    println!("refused within {:?}", began.elapsed());

    let (done, said) = recover(&second, &["--cluster", "west"]);
    assert!(!done && said.contains("another process uses it"), "{said}");
    second.signal(SIGTERM);
    assert_eq!(second.ended().await, Some(0));
    let (done, said) = recover(&second, &["--cluster", "east"]);
    assert!(!done && said.contains("nothing was changed"), "{said}");
    let (told, said) = recover(&second, &[]);
    assert!(told && said.contains("Given up for good") && said.contains("replica 1 at"), "{said}");
    let (done, said) = recover(&second, &["--cluster", "west"]);
    assert!(done, "{said}");

    second.start(&[], None);
    let seen = until(&second.socket(), "it leads", |status| status.leader == survivor).await;
    assert!(seen.revision > revision + 1_000_000 && seen.replicas.len() == 1, "{seen:?}");
    assert_eq!(names(&second.socket()).await, ["kept"]);
    // The others come back, as if nothing had been: they are a majority of the old group, and none of the new one.
    first.start(&[], None);
    third.start(&[], None);
    until(&first.socket(), "the old group lives", |status| status.leader != 0 && status.leader != survivor)
        .await;
    let after = apply(&second.socket(), "anew").await.unwrap();
    assert!(after > seen.revision);
    let seen = until(&second.socket(), "it leads still", |status| status.leader == survivor).await;
    assert_eq!(seen.replicas.len(), 1, "{:?}", seen.replicas);
    assert_eq!(names(&first.socket()).await, ["kept"]);

    // A newcomer is of the new group.
    let fourth = Replica::first_start(&[], Some(&token(&second.socket(), false).await));
    until(&second.socket(), "two voters", |status| voters(status) == 2).await;
    assert_eq!(names(&fourth.socket()).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_whose_log_is_gone_make_no_new_group() {
    let mut only = Replica::first_start(&WEST, None);
    until(&only.socket(), "it leads", |status| status.leader == 1).await;
    // Membership is remembered once the replica is ready.
    let group = only.data().join("keys/group.json");
    let remembered = || std::fs::read_to_string(&group).is_ok_and(|text| text.contains("true"));
    until(&only.socket(), "it is remembered", |_| remembered()).await;
    only.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(only.ended().await, Some(0));
    std::fs::remove_dir_all(only.data().join("raft")).unwrap();
    only.start(&WEST, None);
    assert_eq!(only.ended().await, Some(1));
    let said = std::fs::read_to_string(only.log()).unwrap();
    let sentence = said.lines().last().unwrap();
    assert!(
        sentence.contains("its log is gone") && sentence.contains("clustermesh replica remove"),
        "{sentence}"
    );
}
