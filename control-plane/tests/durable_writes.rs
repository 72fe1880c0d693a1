//! Three replica processes, killed with SIGKILL again and again: one, the leader, two, all. What was acknowledged
//! must be on every replica in the end, and no two writes may have been given the same revision.
//!
//! The replicas are this very program, started again with an environment variable that says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use control_plane::raft::{DialError, Dialer, RaftConfig, Replica, Timings};
use futures::FutureExt;
use mesh_model::{
    identity::TrustDomain,
    records::ClusterInfo,
    resource::{Labels, Meta, NamespacedName, Object, ProxyMode, Workload},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::transport::{Endpoint, Server};

/// Holds `<id> <raft address> <control address> <folder>` in a replica process.
const ROLE: &str = "ISTHMUS_DURABLE_WRITES_REPLICA";
/// Kills of one or more replicas.
const ROUNDS: usize = 24;
/// Acknowledged writes between two kills.
const WRITES_PER_ROUND: usize = 25;
/// No further kills after this; the end of the test needs a few seconds more.
const KILLING: Duration = Duration::from_secs(24);
/// Longest wait for one answer, or for the group to be as wanted.
const PATIENCE: Duration = Duration::from_secs(12);
const WRITERS: usize = 4;

// ---------------------------------------------------------------- the replica process

/// Is a test so that the test harness starts it; does nothing unless it was started as a replica.
#[test]
fn replica_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.splitn(4, ' ').collect();
    let [id, raft, control, dir] = words[..] else { panic!("{ROLE} has four words") };
    // Whatever becomes of the test: its replicas end with it.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("known to every Linux");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(serve(
        id.parse().expect("a number"),
        raft.parse().expect("an address"),
        control.parse().expect("an address"),
        Path::new(dir),
    ));
}

async fn serve(id: u64, raft: SocketAddr, control: SocketAddr, dir: &Path) {
    let raft_door = TcpListener::bind(raft).await.expect("the port is free again");
    let mut config = RaftConfig::new(id, raft.to_string(), dir);
    config.timings = Timings {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(500),
    };
    // Small enough that snapshots and purges happen among the kills.
    config.snapshot_after = 40;
    config.keep_entries = 10;
    let replica = Arc::new(Replica::open(config, dialer()).await.expect("what was acknowledged is there"));
    let service = replica.service(Arc::new(|_| Ok(None)));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(raft_door);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let door = TcpListener::bind(control).await.expect("the port is free again");
    loop {
        let (stream, _) = door.accept().await.expect("connections");
        let replica = replica.clone();
        tokio::spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = answer(&replica, &line).await.unwrap_or_else(|error| format!("error {error}"));
                if write.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn answer(replica: &Replica, line: &str) -> Result<String, String> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match verb {
        "init" => {
            replica.initialize().await.map_err(|e| text(&e))?;
            replica.write(init()).await.map_err(|e| text(&e))?;
            replica.add_replica(1, rest).await.map_err(|e| text(&e)).map(|id| id.to_string())
        }
        "add" => replica.add_replica(0, rest).await.map_err(|e| text(&e)).map(|id| id.to_string()),
        "write" => {
            replica.write(put(rest)).await.map_err(|e| text(&e)).map(|applied| applied.revision.to_string())
        }
        "voters" => {
            let members = replica.metrics().members;
            Ok(members.iter().filter(|member| member.voter).count().to_string())
        }
        "leader" => Ok(replica.metrics().leader.map_or("none".to_owned(), |leader| leader.to_string())),
        "read" => {
            let state = replica.linearizable().await.map_err(|e| text(&e))?;
            let names: Vec<&str> = state.objects.keys().map(|key| key.name.name.as_str()).collect();
            Ok(names.join(" "))
        }
        other => Err(format!("{other} is no command")),
    }
}

fn dialer() -> Dialer {
    Arc::new(|id, address| {
        async move {
            let fail = |reason: String| DialError { id, address: address.clone(), reason };
            let endpoint =
                Endpoint::from_shared(format!("http://{address}")).map_err(|e| fail(e.to_string()))?;
            endpoint.connect().await.map_err(|error| fail(error.to_string()))
        }
        .boxed()
    })
}

fn init() -> mesh_store::Command {
    mesh_store::Command::Init(ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().expect("a range"),
        service_cidr: "10.101.0.0/16".parse().expect("a range"),
        roots: vec![vec![1]],
        trust: Default::default(),
    })
}

fn put(name: &str) -> mesh_store::Command {
    let name = NamespacedName::new("test", name);
    let meta = Meta { name, labels: Labels::new(), annotations: Labels::new(), resource_version: None };
    let workload = Workload {
        meta,
        service_account: "default".to_owned(),
        proxy: ProxyMode::None,
        ports: Vec::new(),
        address: None,
    };
    mesh_store::Command::Apply { objects: vec![Object::Workload(workload)], dry_run: false }
}

// ---------------------------------------------------------------- the test

struct Process {
    id: usize,
    raft: SocketAddr,
    control: SocketAddr,
    dir: PathBuf,
    child: Option<Child>,
}

impl Process {
    fn start(&mut self) {
        let role = format!("{} {} {} {}", self.id, self.raft, self.control, self.dir.display());
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "replica_process", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("this program starts again"));
    }

    /// SIGKILL, to this process only.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it was running");
            child.wait().expect("it was ours");
        }
    }

    fn assert_running(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        assert!(child.try_wait().expect("it is ours").is_none(), "replica {} ended by itself", self.id);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One question, one answer; an error if the replica is gone or says no.
async fn ask(control: SocketAddr, question: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = TcpStream::connect(control).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(&mut stream).read_line(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.trim_end().split_once(' ') {
        Some(("error", reason)) => Err(reason.to_owned()),
        _ if !answer.ends_with('\n') => Err("the answer was cut".to_owned()),
        _ => Ok(answer.trim_end().to_owned()),
    }
}

/// Asks until the answer is as wanted.
async fn until(control: SocketAddr, question: &str, wanted: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let answer = ask(control, question).await;
        match &answer {
            Ok(answer) if wanted(answer) => return answer.clone(),
            _ => assert!(started.elapsed() < PATIENCE, "{control}: {question}: {answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Name and revision of every write that was acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

async fn write(
    writer: usize,
    controls: [SocketAddr; 3],
    acknowledged: Acknowledged,
    count: watch::Sender<usize>,
) {
    for n in 0.. {
        let name = format!("w{writer}-{n}");
        // A write that fails may have taken effect or not: it is not counted, and its name is not used again.
        match ask(controls[(writer + n) % 3], &format!("write {name}")).await {
            Ok(revision) => {
                let revision = revision.parse().expect("a revision");
                acknowledged.lock().expect("no writer panics").insert(name, revision);
                count.send_modify(|count| *count += 1);
            }
            // Mostly a refused connection to a replica that is down.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_sigkill_of_some_and_of_all() {
    if std::env::var(ROLE).is_ok() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut processes: Vec<Process> = Vec::new();
    {
        // All at once, so that no port is handed out twice.
        let held =
            std::array::from_fn::<_, 6, _>(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
        let ports: Vec<SocketAddr> = held.iter().map(|port| port.local_addr().expect("bound")).collect();
        for id in 1..=3 {
            let (raft, control) = (ports[2 * id - 2], ports[2 * id - 1]);
            processes.push(Process {
                id,
                raft,
                control,
                dir: folder.path().join(id.to_string()),
                child: None,
            });
        }
    }
    processes.iter_mut().for_each(Process::start);
    let controls = [0, 1, 2].map(|n| processes[n].control);
    until(controls[0], "leader", |_| true).await;
    ask(controls[0], &format!("init {}", processes[0].raft)).await.expect("a group of one");
    for process in &processes[1..] {
        let id = ask(controls[0], &format!("add {}", process.raft)).await.expect("added");
        assert_eq!(id, process.id.to_string());
    }
    until(controls[0], "voters", |voters| voters == "3").await;

    let acknowledged = Acknowledged::default();
    let (count, mut counted) = watch::channel(0);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(writer, controls, acknowledged.clone(), count.clone())))
        .collect();
    let started = Instant::now();
    let mut killed = 0;
    for round in 0..ROUNDS {
        if started.elapsed() > KILLING {
            break;
        }
        let goal = *counted.borrow() + WRITES_PER_ROUND;
        let reached = tokio::time::timeout(PATIENCE, counted.wait_for(|count| *count >= goal)).await;
        reached.expect("writes go on after every kill").expect("the writers run");
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
            let (before, killed_at) = (*counted.borrow(), Instant::now());
            let more =
                tokio::time::timeout(PATIENCE, counted.wait_for(|count| *count > before + WRITERS)).await;
            more.expect("the others elect a leader").expect("the writers run");
            println!("leader {} killed, writes go on after {:?}", victims[0] + 1, killed_at.elapsed());
        }
        for victim in &victims {
            processes[*victim].start();
        }
        killed += victims.len();
    }
    let goal = *counted.borrow() + WRITES_PER_ROUND;
    let reached = tokio::time::timeout(PATIENCE, counted.wait_for(|count| *count >= goal)).await;
    reached.expect("writes go on after the last kill").expect("the writers run");
    writers.iter().for_each(|writer| writer.abort());

    let acknowledged = acknowledged.lock().expect("no writer panics").clone();
    println!("{} acknowledged writes, {killed} kills, {:?}", acknowledged.len(), started.elapsed());
    assert!(killed >= 6, "only {killed} kills in {:?}", started.elapsed());
    let revisions: BTreeSet<u64> = acknowledged.values().copied().collect();
    assert_eq!(revisions.len(), acknowledged.len(), "two writes were given the same revision");
    for process in &mut processes {
        let names = until(process.control, "read", |_| true).await;
        let names: BTreeSet<&str> = names.split(' ').collect();
        let lost: Vec<&String> = acknowledged.keys().filter(|name| !names.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "replica {} has lost {lost:?}", process.id);
        process.assert_running();
    }
}
