//! A replica that is far behind is sent a snapshot of many chunks, while others write. In the middle of it the leader is
//! killed: the replica gets there all the same, by another's snapshot, and in the end all have the same state.

#[path = "common/group.rs"]
mod group;
#[path = "common/history.rs"]
mod history;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use group::{Clients, PATIENCE, Process, Role, ask, is_replica, ports, three, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A snapshot of them has a dozen chunks of 1 MiB.
const OBJECTS: usize = 200;
const OBJECT_BYTES: usize = 60_000;
/// What of the snapshot arrives before the leader is killed: more than two chunks, far from all.
const LET_THROUGH: u64 = 3 << 20;
const WRITERS: usize = 3;
/// By each of the readers, the one of the replica far behind included: once it has arrived.
const LEAST_READS: usize = 3;

/// The way to one replica, that lets so many bytes through and then holds what comes.
#[derive(Clone)]
struct Sluice {
    /// Bytes that may still pass.
    budget: watch::Sender<u64>,
    /// Whether some have been held since.
    held: watch::Sender<bool>,
}

impl Sluice {
    fn open() -> Self {
        Self { budget: watch::Sender::new(u64::MAX), held: watch::Sender::new(false) }
    }

    async fn serve(self, listener: TcpListener, to: SocketAddr) {
        while let Ok((from, _)) = listener.accept().await {
            tokio::spawn(self.clone().carry(from, to));
        }
    }

    async fn carry(self, from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
        let onward = TcpStream::connect(to).await?;
        let (mut requests, mut answers_out) = from.into_split();
        let (mut answers, mut requests_out) = onward.into_split();
        let back = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut answers_out).await });
        let mut bytes = vec![0; 16 << 10];
        loop {
            let read = requests.read(&mut bytes).await?;
            if read == 0 {
                break;
            }
            let mut budget = self.budget.subscribe();
            if *budget.borrow() < read as u64 {
                self.held.send_replace(true);
            }
            let passes = budget.wait_for(|budget| *budget >= read as u64).await;
            passes.map_err(std::io::Error::other)?;
            self.budget.send_modify(|budget| *budget = budget.saturating_sub(read as u64));
            requests_out.write_all(&bytes[..read]).await?;
        }
        back.abort();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_far_behind_arrives_though_the_leader_is_killed_while_it_sends_the_snapshot() {
    if is_replica() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ports = ports(6);
    let gate = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let role = |id: usize| Role {
        id,
        raft: ports[2 * id - 2],
        advertised: if id == 3 { gate.local_addr().expect("bound") } else { ports[2 * id - 2] },
        control: ports[2 * id - 1],
        dir: folder.path().join(id.to_string()),
        snapshot_after: 50,
        keep_entries: 10,
    };
    let mut processes: Vec<Process> = (1..=3).map(|id| Process::new(role(id))).collect();
    let controls: Vec<SocketAddr> = processes.iter().map(|process| process.role.control).collect();
    let sluice = Sluice::open();
    tokio::spawn(sluice.clone().serve(gate, processes[2].role.raft));
    three(&mut processes).await;

    // What the third one misses is in no log any more.
    processes[2].kill();
    let clients = Arc::new(Clients::default());
    for n in 0..OBJECTS {
        let number = clients.recorder.begins("big", n as u64);
        let revision = ask(controls[0], &format!("write big{n} big {n} {OBJECT_BYTES}")).await;
        let revision = revision.expect("a majority is there").parse().expect("a revision");
        clients.recorder.acknowledged(number, revision);
    }
    for control in &controls[..2] {
        until(*control, "snapshot", |index| index.parse::<usize>().is_ok_and(|index| index > OBJECTS / 2))
            .await;
    }
    let mut tasks: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(clients.clone().write(writer, controls[..2].to_vec())))
        .collect();
    tasks.extend((0..3).map(|n| tokio::spawn(clients.clone().read(n, controls[n]))));
    clients.going_on(20, "with two of three").await;

    sluice.budget.send_replace(LET_THROUGH);
    processes[2].start();
    let held = async { sluice.held.subscribe().wait_for(|held| *held).await.map(|_| ()) };
    tokio::time::timeout(PATIENCE, held).await.expect("a snapshot is sent").expect("the sluice is there");
    clients.going_on(20, "while the snapshot is on its way").await;
    assert_eq!(until(controls[2], "installed", |_| true).await, "0", "it is not whole yet");
    let sender: usize = until(controls[0], "leader", |id| id != "none").await.parse().expect("a number");
    assert_ne!(sender, 3);
    processes[sender - 1].kill();
    sluice.budget.send_replace(u64::MAX);

    // The one that is left needs the third for a majority, and the third needs the snapshot first.
    clients.going_on(20, "after the leader is gone").await;
    until(controls[2], "installed", |installed| installed != "0").await;
    processes[sender - 1].start();
    clients.going_on(20, "with all three").await;
    tasks.iter().for_each(|task| task.abort());

    let acknowledged = clients.acknowledged();
    let mut hashes = BTreeSet::new();
    // What was under way when the writers stopped may come late: asked until all agree.
    for _ in 0..20 {
        hashes.clear();
        for control in &controls {
            hashes.insert(until(*control, "hash", |_| true).await);
        }
        if hashes.len() == 1 {
            break;
        }
    }
    println!("{} acknowledged writes, then {hashes:?}", acknowledged.len());
    assert_eq!(hashes.len(), 1, "they differ");
    for (process, control) in processes.iter_mut().zip(&controls) {
        let names = until(*control, "names", |_| true).await;
        let names: BTreeSet<&str> = names.split(' ').collect();
        let lost: Vec<&String> = acknowledged.keys().filter(|name| !names.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "replica {} has lost {lost:?}", process.role.id);
        assert!((0..OBJECTS).all(|n| names.contains(format!("big{n}").as_str())), "what came by snapshot");
        process.assert_running();
    }
    clients.recorder.holds(0..3, LEAST_READS);
}
