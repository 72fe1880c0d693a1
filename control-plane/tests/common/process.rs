//! Replicas as processes on loopback, and the command line as its user types it.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_tls::grpc;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tonic::Status;
use xds_proto::isthmus::admin::v1::{
    ApplyRequest, CreateTokenRequest, ListRequest, StatusRequest, StatusResponse, admin_client::AdminClient,
};

/// Longest wait for anything that must happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Namespace of the registers.
const REGISTERS: &str = "registers";
/// What the first replica of a cluster needs.
pub const WEST: [&str; 4] = ["--name", "west", "--trust-domain", "west.example"];

/// One replica and its process.
pub struct Replica {
    folder: TempDir,
    pub door: u16,
    /// Variables of its process, beside the test's own.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// The program is started by this one, with these arguments: in a namespace, or with faults.
    pub through: Vec<String>,
    child: Option<Child>,
}

impl Replica {
    /// A first start, with what it takes.
    pub fn first_start(flags: &[&str], token: Option<&str>) -> Self {
        let mut replica = Self::new();
        replica.start(flags, token);
        replica
    }

    /// A machine on which nothing was started yet.
    pub fn new() -> Self {
        // Held by nobody between here and the bind; loopback ports of the kernel's choice are not given out again soon.
        let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            folder: tempfile::tempdir().unwrap(),
            door,
            environment: Vec::new(),
            through: Vec::new(),
            child: None,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("admin.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// A file of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `host:port` of its mesh door.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.door)
    }

    pub fn start(&mut self, flags: &[&str], token: Option<&str>) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut line = self.through.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_control-plane")]);
        let mut command = Command::new(line.next().unwrap());
        command
            .args(line)
            .args(["run", "--listen", &self.address(), "--data-dir"])
            .arg(self.data())
            .arg("--admin-socket")
            .arg(self.socket())
            .args(flags)
            .env_remove("CLUSTERMESH_JOIN_TOKEN")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(token) = token {
            command.env("CLUSTERMESH_JOIN_TOKEN", token);
        }
        self.child = Some(command.spawn().unwrap());
    }

    pub fn signal(&mut self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The code with which it ends.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let waiting = tokio::task::spawn_blocking(move || {
            let end = Instant::now() + PATIENCE;
            loop {
                match child.try_wait().unwrap() {
                    Some(status) => return status.code(),
                    None if Instant::now() > end => {
                        child.kill().unwrap();
                        panic!("it did not end");
                    }
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        waiting.await.unwrap()
    }

    /// Its last words.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// What a user types after `clustermesh`, on this machine.
    pub async fn types(&self, line: &str) -> Typed {
        let mut command = Command::new(clustermesh());
        // A width is of a terminal, and colours are too: this is a pipe, as in a script.
        command.args(line.split_whitespace()).env("CLUSTERMESH_SOCKET", self.socket()).stdin(Stdio::null());
        let line = line.to_owned();
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let typed = Typed::new(&line, &output);
        println!("$ clustermesh {line}\n{}{}[{}]\n", typed.out, typed.err, typed.code);
        typed
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.said();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("{}:\n{}", self.door, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// What a command has answered.
#[derive(Debug, Clone)]
pub struct Typed {
    pub line: String,
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Typed {
    fn new(line: &str, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            line: line.to_owned(),
            out: text(&output.stdout),
            err: text(&output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// It ended so. Returns what it wrote.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// On stderr there is one sentence, and these words are in it.
    #[track_caller]
    pub fn complains(&self, words: &[&str]) {
        assert_eq!(self.err.lines().count(), 1, "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "{word}: {self:#?}");
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// What stands under a title, up to an empty line.
    #[track_caller]
    pub fn below(&self, title: &str) -> Self {
        let found = self.out.split_once(&format!("\n{title}\n"));
        let (_, after) = found.unwrap_or_else(|| panic!("no {title}: {self:#?}"));
        Self { out: after.split("\n\n").next().unwrap_or_default().to_owned(), ..self.clone() }
    }

    /// The rows under a heading that begins so, up to an empty line: by column.
    #[track_caller]
    pub fn rows(&self, heading: &str) -> Vec<BTreeMap<String, String>> {
        let mut lines = self.out.lines().skip_while(|line| !line.starts_with(heading));
        let head = lines.next().unwrap_or_else(|| panic!("no {heading}: {self:#?}"));
        let columns = columns(head);
        lines
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let cells: Vec<char> = line.chars().collect();
                let cell = |index: usize| {
                    let from = columns[index].0.min(cells.len());
                    let to = columns.get(index + 1).map_or(cells.len(), |next| next.0.min(cells.len()));
                    // A column begins under its heading, in every row: that is what aligned means.
                    let aligned = index == 0 || from == cells.len() || cells[from - 1] == ' ';
                    assert!(aligned, "not aligned: {line:?} in {self:#?}");
                    cells[from..to].iter().collect::<String>().trim_end().to_owned()
                };
                columns.iter().enumerate().map(|(index, (_, name))| (name.clone(), cell(index))).collect()
            })
            .collect()
    }
}

/// Where each heading begins.
fn columns(head: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut at = 0;
    for part in head.split("   ") {
        let name = part.trim_start();
        if !name.is_empty() {
            found.push((at + part.len() - name.len(), name.trim_end().to_owned()));
        }
        at += part.len() + 3;
    }
    found
}

/// Built beside the control plane; `make build` has.
pub fn clustermesh() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_control-plane")).with_file_name("clustermesh");
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

pub async fn admin(socket: &Path) -> Result<AdminClient<tonic::transport::Channel>, mesh_tls::Error> {
    // Lists may be long.
    Ok(AdminClient::new(grpc::connect_unix(socket).await?).max_decoding_message_size(usize::MAX))
}

pub async fn status(socket: &Path) -> Result<StatusResponse, Status> {
    let mut admin = admin(socket).await.map_err(|e| Status::unavailable(e.to_string()))?;
    Ok(admin.status(StatusRequest {}).await?.into_inner())
}

/// What is asked of a replica is answered, or the test says what was not: one that hangs would hold it for ever.
pub async fn answered<T>(what: &str, asking: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never answered: {what}"))
}

/// Asks until the answer is as wanted.
pub async fn until(socket: &Path, what: &str, wanted: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = answered(what, status(socket)).await;
        match seen {
            Ok(seen) if wanted(&seen) => return seen,
            _ => assert!(Instant::now() < end, "never: {what}: {seen:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Types it until the answer is as wanted.
pub async fn until_typed(by: &Replica, line: &str, what: &str, wanted: impl Fn(&Typed) -> bool) -> Typed {
    let end = Instant::now() + PATIENCE;
    loop {
        let typed = by.types(line).await;
        if typed.code == 0 && wanted(&typed) {
            return typed;
        }
        assert!(Instant::now() < end, "never: {what}: {typed:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn voters(status: &StatusResponse) -> usize {
    status.replicas.iter().filter(|replica| replica.voter).count()
}

/// Every voter answers, and has what the leader has.
pub fn well(status: &StatusResponse, count: usize) -> bool {
    status.leader != 0
        && voters(status) == count
        && status.replicas.iter().all(|r| r.reachable && r.lag_known && r.applied > 0)
}

pub async fn token(socket: &Path, learner: bool) -> String {
    let request = CreateTokenRequest { purpose: "replica".to_owned(), learner, ..Default::default() };
    let mut admin = admin(socket).await.unwrap();
    answered("a token", admin.create_token(request)).await.unwrap().into_inner().token
}

pub async fn apply(socket: &Path, name: &str) -> Result<u64, Status> {
    apply_large(socket, name, 0).await
}

/// With an annotation of so many bytes.
pub async fn apply_large(socket: &Path, name: &str, bytes: usize) -> Result<u64, Status> {
    let note = "x".repeat(bytes);
    let object = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"shop","annotations":{{"note":"{note}"}}}},"spec":{{"clusterIP":"None","ports":[{{"port":80}}]}}}}"#
    );
    let mut admin = admin(socket).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let request = ApplyRequest { objects: vec![object.into_bytes()], ..Default::default() };
    Ok(admin.apply(request).await?.into_inner().revision)
}

/// The same, and in one stroke the value of a register: an object that is overwritten.
pub async fn apply_register(socket: &Path, name: &str, register: &str, value: u64) -> Result<u64, Status> {
    let object = |namespace: &str, name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"{namespace}","annotations":{{"value":"{value}"}}}},"spec":{{"clusterIP":"None","ports":[{{"port":80}}]}}}}"#
        )
        .into_bytes()
    };
    let mut admin = admin(socket).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let objects = vec![object("shop", name), object(REGISTERS, register)];
    Ok(admin.apply(ApplyRequest { objects, ..Default::default() }).await?.into_inner().revision)
}

/// Revision of the state, and all registers in it: value and revision, by name. Read linearizably.
pub async fn registers(socket: &Path) -> Result<(u64, BTreeMap<String, (u64, u64)>), Status> {
    let mut admin = admin(socket).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let kind = "Service".to_owned();
    let request = ListRequest { kind, namespace: REGISTERS.to_owned(), ..Default::default() };
    let listed = admin.list(request).await?.into_inner();
    let register = |json: &Vec<u8>| {
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        let meta = |pointer: &str| value.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let number = |pointer: &str| meta(pointer).parse::<u64>().unwrap();
        (meta("/metadata/name"), (number("/metadata/annotations/value"), number("/metadata/resourceVersion")))
    };
    Ok((listed.revision, listed.objects.iter().map(register).collect()))
}

/// One of the metrics that a replica serves on a port.
pub async fn metric(port: u16, name: &str) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asking = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    };
    let page = answered(name, asking).await;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name}: {page}"));
    value.parse::<f64>().unwrap() as u64
}

/// The names of all services, read linearizably.
pub async fn names(socket: &Path) -> Vec<String> {
    let (kind, namespace) = ("Service".to_owned(), "shop".to_owned());
    let request = ListRequest { kind, namespace, ..Default::default() };
    let mut admin = admin(socket).await.unwrap();
    let listed = answered("a list", admin.list(request)).await.unwrap().into_inner();
    let name = |json: &Vec<u8>| {
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        value["metadata"]["name"].as_str().unwrap().to_owned()
    };
    listed.objects.iter().map(name).collect()
}

/// Three voters that know of one another.
pub async fn three(flags: &[&str]) -> Vec<Replica> {
    let first: Vec<&str> = WEST.iter().chain(flags).copied().collect();
    let mut all = vec![Replica::first_start(&first, None)];
    let home = all[0].socket();
    until(&home, "the first leads", |status| status.leader == 1).await;
    for _ in 0..2 {
        let token = token(&home, false).await;
        all.push(Replica::first_start(flags, Some(&token)));
        let count = all.len();
        until(&home, "it is listed", move |status| status.replicas.len() == count).await;
    }
    for replica in &all {
        until(&replica.socket(), "three voters", |status| well(status, 3)).await;
    }
    all
}
