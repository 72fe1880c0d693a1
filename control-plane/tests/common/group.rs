//! Replicas of the store alone, one process each, without certificates: what is killed is a process, and what is asked
//! is raft. The replicas are the test's own program, started again with an environment variable that says so.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
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
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::transport::{Endpoint, Server};

use super::history::{Recorder, Seen};

/// Holds the [`Role`] of a replica process.
const ROLE: &str = "ISTHMUS_TEST_REPLICA";
/// Of whatever is overwritten; everything else is written once.
const REGISTERS: &str = "registers";
/// Longest wait for one answer: a write that finds no leader is given up before that.
const ANSWER: Duration = Duration::from_secs(12);
/// Longest wait for the group to be as wanted, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// What a replica process is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    pub id: usize,
    /// Where raft listens.
    pub raft: SocketAddr,
    /// Where the others look for it.
    pub advertised: SocketAddr,
    /// Where the test asks.
    pub control: SocketAddr,
    pub dir: PathBuf,
    pub snapshot_after: u64,
    pub keep_entries: u64,
}

/// Whether this process is a replica, or to be one: then there is nothing to test in it.
pub fn is_replica() -> bool {
    std::env::var(ROLE).is_ok()
}

// ---------------------------------------------------------------- the replica process

/// Is a test so that the test harness starts it; does nothing unless it was started as a replica.
#[test]
fn replica_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // Whatever becomes of the test: its replicas end with it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("known to every Linux");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(serve(serde_json::from_str(&role).unwrap()));
}

async fn serve(role: Role) {
    let raft_door = TcpListener::bind(role.raft).await.expect("the port is free again");
    let mut config = RaftConfig::new(role.id as u64, role.advertised.to_string(), role.dir);
    config.timings = Timings {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(500),
    };
    config.snapshot_after = role.snapshot_after;
    config.keep_entries = role.keep_entries;
    let replica = Arc::new(Replica::open(config, dialer()).await.expect("what was acknowledged is there"));
    let service = replica.service(Arc::new(|_| Ok(None)));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(raft_door);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let door = TcpListener::bind(role.control).await.expect("the port is free again");
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
        // A name, the register that is overwritten at once with it, its value, and bytes of ballast.
        "write" => {
            let [name, register, value, bytes] = rest.split(' ').collect::<Vec<_>>()[..] else {
                return Err(format!("write {rest}: four words are needed"));
            };
            let bytes = bytes.parse().map_err(|_| format!("{bytes} is no number"))?;
            let objects =
                vec![workload("test", name, &"x".repeat(bytes)), workload(REGISTERS, register, value)];
            let command = mesh_store::Command::Apply { objects, dry_run: false };
            replica.write(command).await.map_err(|e| text(&e)).map(|applied| applied.revision.to_string())
        }
        "voters" => {
            let members = replica.metrics().members;
            Ok(members.iter().filter(|member| member.voter).count().to_string())
        }
        "leader" => Ok(replica.metrics().leader.map_or("none".to_owned(), |leader| leader.to_string())),
        "installed" => Ok(replica.metrics().counters.snapshots_installed.to_string()),
        "snapshot" => Ok(replica.metrics().snapshot_index.unwrap_or(0).to_string()),
        "applied" => Ok(replica.applied().revision.to_string()),
        "names" => {
            let state = replica.linearizable().await.map_err(|e| text(&e))?;
            let names = state.objects.keys().filter(|key| key.name.namespace == "test");
            Ok(names.map(|key| key.name.name.as_str()).collect::<Vec<_>>().join(" "))
        }
        "read" => {
            let state = replica.linearizable().await.map_err(|e| text(&e))?;
            let registers = state.object_meta.iter().filter(|(key, _)| key.name.namespace == REGISTERS);
            let shown = registers.map(|(key, meta)| {
                let value = match state.objects.get(key).map(Arc::as_ref) {
                    Some(Object::Workload(workload)) => workload.meta.annotations["note"].clone(),
                    other => format!("{other:?}"),
                };
                format!(" {}={value}@{}", key.name.name, meta.revision)
            });
            Ok(format!("{}{}", state.revision, shown.collect::<String>()))
        }
        // All of the state, as a snapshot would hold it.
        "hash" => {
            let state = replica.linearizable().await.map_err(|e| text(&e))?;
            let bytes = mesh_store::encode(&state).map_err(|e| text(&e))?;
            let digest: String =
                sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(format!("{} {digest} of {} bytes", state.revision, bytes.len()))
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

/// What makes a state a cluster's.
pub fn init() -> mesh_store::Command {
    mesh_store::Command::Init(ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().expect("a range"),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().expect("a range"),
        roots: vec![vec![1]],
        trust: Default::default(),
    })
}

/// An object that holds a text.
pub fn workload(namespace: &str, name: &str, note: &str) -> Object {
    let name = NamespacedName::new(namespace, name);
    let annotations = [("note".to_owned(), note.to_owned())].into();
    let meta = Meta { name, labels: Labels::new(), annotations, resource_version: None };
    let service_account = "default".to_owned();
    Object::Workload(Workload {
        meta,
        service_account,
        proxy: ProxyMode::None,
        ports: Vec::new(),
        address: None,
        readiness: None,
    })
}

// ---------------------------------------------------------------- the test's side

pub struct Process {
    pub role: Role,
    child: Option<Child>,
}

/// Loopback ports that nobody has, as many as asked for.
pub fn ports(count: usize) -> Vec<SocketAddr> {
    // All at once, so that none is handed out twice.
    let held: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|port| port.local_addr().unwrap()).collect()
}

impl Process {
    pub fn new(role: Role) -> Self {
        Self { role, child: None }
    }

    pub fn start(&mut self) {
        // The path of the test above, in whichever program this is part of.
        let path = format!("{}::replica_process", module_path!());
        let path = path.split_once("::").map(|(_, path)| path.to_owned()).unwrap_or(path);
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", &path, "--nocapture", "--test-threads=1"])
            .env(ROLE, serde_json::to_string(&self.role).unwrap())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("this program starts again"));
    }

    /// SIGKILL, to this process only.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it was running");
            child.wait().expect("it was ours");
        }
    }

    pub fn assert_running(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        assert!(child.try_wait().expect("it is ours").is_none(), "replica {} ended by itself", self.role.id);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three voters that know of one another.
pub async fn three(processes: &mut [Process]) {
    processes.iter_mut().for_each(Process::start);
    let first = processes[0].role.clone();
    until(first.control, "leader", |_| true).await;
    ask(first.control, &format!("init {}", first.advertised)).await.expect("a group of one");
    for process in &processes[1..] {
        let id = ask(first.control, &format!("add {}", process.role.advertised)).await.expect("added");
        assert_eq!(id, process.role.id.to_string());
    }
    until(first.control, "voters", |voters| voters == "3").await;
}

/// One question, one answer; an error if the replica is gone or says no.
pub async fn ask(control: SocketAddr, question: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = TcpStream::connect(control).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(&mut stream).read_line(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER, asked).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.trim_end().split_once(' ') {
        Some(("error", reason)) => Err(reason.to_owned()),
        _ if !answer.ends_with('\n') => Err("the answer was cut".to_owned()),
        _ => Ok(answer.trim_end().to_owned()),
    }
}

/// Asks until the answer is as wanted.
pub async fn until(control: SocketAddr, question: &str, wanted: impl Fn(&str) -> bool) -> String {
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

/// Clients of a group, and what they were told.
#[derive(Default)]
pub struct Clients {
    /// Name and revision of every write that was acknowledged.
    pub acknowledged: Mutex<BTreeMap<String, u64>>,
    pub count: watch::Sender<usize>,
    pub recorder: Recorder,
}

impl Clients {
    pub fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// So many more writes are acknowledged.
    pub async fn going_on(&self, more: usize, what: &str) {
        let mut counted = self.count.subscribe();
        let goal = *counted.borrow() + more;
        let reached = tokio::time::timeout(PATIENCE, counted.wait_for(|count| *count >= goal)).await;
        reached.unwrap_or_else(|_| panic!("{what}: no {more} more writes")).expect("the writers run");
    }

    /// Writes for ever, to each of the replicas in turn.
    pub async fn write(self: Arc<Self>, writer: usize, controls: Vec<SocketAddr>) {
        let register = format!("r{writer}");
        for n in 0.. {
            let name = format!("w{writer}-{n}");
            let number = self.recorder.begins(&register, n as u64);
            // A write that fails may have taken effect or not: it is not counted, and its name and value are not used
            // again.
            let question = format!("write {name} {register} {n} 0");
            match ask(controls[(writer + n) % controls.len()], &question).await {
                Ok(revision) => {
                    let revision = revision.parse().expect("a revision");
                    self.recorder.acknowledged(number, revision);
                    self.acknowledged.lock().unwrap().insert(name, revision);
                    self.count.send_modify(|count| *count += 1);
                }
                // Mostly a refused connection to a replica that is down.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Reads for ever, from one replica: each client is loyal, and all together must agree.
    pub async fn read(self: Arc<Self>, client: usize, control: SocketAddr) {
        loop {
            let called = self.recorder.now();
            match ask(control, "read").await {
                Ok(answer) => {
                    let (revision, registers) = registers(&answer);
                    self.recorder.read(client, called, revision, registers);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// What `read` answers.
fn registers(answer: &str) -> (u64, BTreeMap<String, Seen>) {
    let mut words = answer.split(' ');
    let revision = words.next().unwrap().parse().expect("a revision");
    let registers = words.map(|word| {
        let (register, seen) = word.split_once('=').unwrap();
        let (value, revision) = seen.split_once('@').unwrap();
        (register.to_owned(), Seen { value: value.parse().unwrap(), revision: revision.parse().unwrap() })
    });
    (revision, registers.collect())
}
