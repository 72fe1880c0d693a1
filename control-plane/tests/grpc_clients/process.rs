//! Clients and servers in the languages whose gRPC speaks xDS by itself, each a process of its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Longest for one answer: calls have a limit of 20 s each, and fail at once if they fail.
const ANSWER: Duration = Duration::from_secs(60);
const METHOD: &str = "/isthmus.test.Echo/Who";

/// Whose implementation of xDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// C-core.
    Python,
    /// `@grpc/grpc-js-xds`.
    Node,
}

/// Whether to do without the clients of other languages.
pub fn skipped() -> bool {
    let skip = std::env::var("SKIP_CLIENTS").is_ok_and(|skip| skip == "1");
    if skip {
        eprintln!("skipped: SKIP_CLIENTS=1");
    }
    skip
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the folder is below the target folder").to_owned()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc_clients").join(name)
}

/// What `make setup` installs.
fn python() -> Command {
    let python = target().join("grpc-venv/bin/python");
    assert!(python.is_file(), "no {}: run `make setup`, or set SKIP_CLIENTS=1", python.display());
    Command::new(python)
}

fn node() -> Command {
    let modules = target().join("grpc-js/node_modules");
    assert!(modules.is_dir(), "no {}: run `make setup`, or set SKIP_CLIENTS=1", modules.display());
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules);
    command
}

/// A port of an address that nobody listens on.
pub fn free_port(ip: IpAddr) -> u16 {
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port()
}

/// Lines of JSON to a process and back. Killed when dropped.
struct Talk {
    what: String,
    _process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn start(mut command: Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { what: format!("{command:?}"), _process: process, stdin, lines }
    }

    async fn heard(&mut self) -> serde_json::Value {
        let line = tokio::time::timeout(ANSWER, self.lines.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).unwrap(),
            other => panic!("{}: {other:?}", self.what),
        }
    }

    async fn ask(&mut self, question: serde_json::Value) -> serde_json::Value {
        self.stdin.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        self.heard().await
    }
}

/// A gRPC server that answers with its name.
pub struct Server {
    _talk: Talk,
}

impl Server {
    /// Serves when this returns. With mTLS if there are files for it.
    pub async fn start(name: &str, at: SocketAddr, files: Option<&Path>) -> Self {
        let mut command = python();
        command.arg(script("server.py")).arg(name).arg(at.to_string()).args(files);
        let mut talk = Talk::start(command);
        talk.heard().await;
        Self { _talk: talk }
    }
}

/// What a number of calls came to.
#[derive(Debug, Default, Deserialize)]
pub struct Calls {
    /// By answer.
    pub answers: BTreeMap<String, u32>,
    /// `CODE: details`
    pub errors: Vec<String>,
}

impl Calls {
    /// Who answered.
    pub fn names(&self) -> Vec<&str> {
        self.answers.keys().map(String::as_str).collect()
    }
}

/// A gRPC client that knows where to go by xDS.
pub struct Client {
    talk: Talk,
}

impl Client {
    pub fn start(language: Language, bootstrap: &Path) -> Self {
        let (mut command, file) = match language {
            Language::Python => (python(), "client.py"),
            Language::Node => (node(), "client.js"),
        };
        command.arg(script(file)).env("GRPC_XDS_BOOTSTRAP", bootstrap);
        Self { talk: Talk::start(command) }
    }

    /// A channel; with credentials that come by xDS, or always in plain text.
    pub async fn open(&mut self, target: &str, xds_credentials: bool) {
        self.talk.ask(json!({"open": target, "xds_credentials": xds_credentials})).await;
    }

    pub async fn call(&mut self, target: &str, count: u32) -> Calls {
        let question = json!({"call": target, "count": count, "path": METHOD});
        serde_json::from_value(self.talk.ask(question).await).unwrap()
    }

    /// Calls until the outcome is as expected.
    pub async fn until(
        &mut self,
        what: &str,
        target: &str,
        count: u32,
        expected: impl Fn(&Calls) -> bool,
    ) -> Calls {
        let begun = std::time::Instant::now();
        loop {
            let calls = self.call(target, count).await;
            if expected(&calls) {
                return calls;
            }
            assert!(begun.elapsed() < crate::common::SOON, "{what}: {calls:?}");
        }
    }
}
