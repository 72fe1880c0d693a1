//! Three replica processes, killed with SIGKILL again and again: one, the leader, two, all. What was acknowledged
//! must be on every replica in the end, no two writes may have been given the same revision, and no read on any replica,
//! at any time, may have missed what was acknowledged before it or gone back behind another.

#[path = "common/group.rs"]
mod group;
#[path = "common/history.rs"]
mod history;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use group::{Clients, Process, Role, ask, is_replica, ports, three, until};

/// Kills of one or more replicas.
const ROUNDS: usize = 24;
/// Acknowledged writes between two kills.
const WRITES_PER_ROUND: usize = 25;
/// No further kills after this; the end of the test needs a few seconds more.
const KILLING: Duration = Duration::from_secs(24);
const WRITERS: usize = 4;
/// By each of the readers: far fewer than there are, far more than none.
const LEAST_READS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_sigkill_of_some_and_of_all_and_no_read_goes_back() {
    if is_replica() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ports = ports(6);
    let role = |id: usize| Role {
        id,
        raft: ports[2 * id - 2],
        advertised: ports[2 * id - 2],
        control: ports[2 * id - 1],
        dir: folder.path().join(id.to_string()),
        // Small enough that snapshots and purges happen among the kills.
        snapshot_after: 40,
        keep_entries: 10,
    };
    let mut processes: Vec<Process> = (1..=3).map(|id| Process::new(role(id))).collect();
    three(&mut processes).await;
    let controls: Vec<_> = processes.iter().map(|process| process.role.control).collect();

    let clients = Arc::new(Clients::default());
    let mut tasks: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(clients.clone().write(writer, controls.clone()))).collect();
    tasks.extend((0..3).map(|n| tokio::spawn(clients.clone().read(n, controls[n]))));
    let started = Instant::now();
    let mut killed = 0;
    for round in 0..ROUNDS {
        if started.elapsed() > KILLING {
            break;
        }
        clients.going_on(WRITES_PER_ROUND, "after a kill").await;
        let leader = ask(controls[round % 3], "leader").await.ok().and_then(|id| id.parse::<usize>().ok());
        let victims: Vec<usize> = match round % 4 {
            0 => leader.map(|id| id - 1).into_iter().collect(),
            1 => vec![round % 3],
            2 => vec![0, 1, 2],
            _ => vec![round % 3, (round + 1) % 3],
        };
        for victim in &victims {
            processes[*victim].assert_running();
            processes[*victim].kill();
        }
        if let ([_], 0) = (&victims[..], round % 4) {
            // The others must do without it: were it back at once, it would go on leading.
            let killed_at = Instant::now();
            clients.going_on(WRITERS + 1, "the others elect a leader").await;
            println!("leader {} killed, writes go on after {:?}", victims[0] + 1, killed_at.elapsed());
        }
        for victim in &victims {
            processes[*victim].start();
        }
        killed += victims.len();
    }
    clients.going_on(WRITES_PER_ROUND, "after the last kill").await;
    tasks.iter().for_each(|task| task.abort());

    let acknowledged = clients.acknowledged();
    println!("{} acknowledged writes, {killed} kills, {:?}", acknowledged.len(), started.elapsed());
    assert!(killed >= 6, "only {killed} kills in {:?}", started.elapsed());
    let revisions: BTreeSet<u64> = acknowledged.values().copied().collect();
    assert_eq!(revisions.len(), acknowledged.len(), "two writes were given the same revision");
    for process in &mut processes {
        let names = until(process.role.control, "names", |_| true).await;
        let names: BTreeSet<&str> = names.split(' ').collect();
        let lost: Vec<&String> = acknowledged.keys().filter(|name| !names.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "replica {} has lost {lost:?}", process.role.id);
        process.assert_running();
    }
    clients.recorder.holds(0..3, LEAST_READS);
}
