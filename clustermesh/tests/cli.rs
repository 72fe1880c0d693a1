//! The binary against a small control plane on a unix socket: what is sent, what is printed, and how it exits.
//! (The true control plane is driven by the same binary in `control-plane/tests/cli` and in `integration/`.)
// Helpers of a test may unwrap like the test itself.
#![allow(clippy::unwrap_used)]

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use clustermesh::token::{JoinToken, Purpose};
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::{
    admin::v1::{
        admin_server::{Admin, AdminServer},
        *,
    },
    bootstrap::v1::{Flow, FlowBatch, FlowPeer},
};

/// Answers from a script, and remembers what it was asked.
#[derive(Default)]
struct Scripted {
    asked: Mutex<Vec<String>>,
    apply: Mutex<Option<Result<ApplyResponse, Status>>>,
    wait: Mutex<Vec<WaitProgress>>,
    watches: Mutex<u32>,
}

fn pay() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "pay", "namespace": "shop", "resourceVersion": "7", "labels": {"app": "pay"}},
        "spec": {"ports": [{"name": "http", "port": 80}]},
        "status": {"virtualIP": "10.101.0.4", "exported": false, "importedFrom": [], "endpoints": []},
    })
}

struct Server(Arc<Scripted>);

impl Server {
    fn note(&self, text: String) {
        self.0.asked.lock().unwrap().push(text);
    }
}

#[tonic::async_trait]
impl Admin for Server {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let r = request.into_inner();
        let objects: Vec<Value> = r.objects.iter().map(|o| serde_json::from_slice(o).unwrap()).collect();
        self.note(format!("apply dry_run={} {}", r.dry_run, json!(objects)));
        let outcome = |o: &Value| ObjectOutcome {
            kind: o["kind"].as_str().unwrap().to_owned(),
            namespace: o["metadata"]["namespace"].as_str().unwrap().to_owned(),
            name: o["metadata"]["name"].as_str().unwrap().to_owned(),
            outcome: "created".to_owned(),
        };
        let usual = ApplyResponse {
            revision: 8,
            outcomes: objects.iter().map(outcome).collect(),
            waiting_for: Vec::new(),
            wait_revision: 7,
        };
        self.0.apply.lock().unwrap().take().unwrap_or(Ok(usual)).map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let outcome = |o: &ObjectRef| ObjectOutcome {
            kind: o.kind.clone(),
            namespace: o.namespace.clone(),
            name: o.name.clone(),
            outcome: if o.name == "pay" { "deleted" } else { "not found" }.to_owned(),
        };
        let outcomes = request.into_inner().objects.iter().map(outcome).collect();
        Ok(Response::new(DeleteResponse { revision: 9, outcomes }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let r = request.into_inner();
        self.note(format!("list {} ns={} name={} l={}", r.kind, r.namespace, r.name, r.label_selector));
        let matches = r.kind == "Service"
            && (r.name.is_empty() || r.name == "pay")
            && (r.namespace.is_empty() || r.namespace == "shop");
        let objects = if matches { vec![pay().to_string().into_bytes()] } else { Vec::new() };
        Ok(Response::new(ListResponse { revision: 7, objects }))
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let r = request.into_inner();
        self.note(format!("watch from {} l={}", r.from_revision, r.label_selector));
        let event = |kind: &str, revision| {
            Ok(WatchEvent { r#type: kind.to_owned(), object: pay().to_string().into_bytes(), revision })
        };
        let bookmark = WatchEvent { r#type: "BOOKMARK".to_owned(), object: Vec::new(), revision: 12 };
        let mut watches = self.0.watches.lock().unwrap();
        *watches += 1;
        let events = match *watches {
            1 => vec![event("MODIFIED", 8), event("DELETED", 9), Ok(bookmark)],
            2 => return Err(Status::unavailable("there is no leader")),
            3 => return Err(Status::out_of_range("revision 12 is compacted")),
            _ => return Err(Status::permission_denied("the end")),
        };
        Ok(Response::new(Box::pin(futures::stream::iter(events))))
    }

    type WaitStream = BoxStream<'static, Result<WaitProgress, Status>>;

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let r = request.into_inner();
        self.note(format!("wait for {} timeout={}", r.revision, r.timeout_ms));
        let told = std::mem::take(&mut *self.0.wait.lock().unwrap());
        Ok(Response::new(Box::pin(futures::stream::iter(told.into_iter().map(Ok)))))
    }

    type WaitHereStream = BoxStream<'static, Result<WaitReports, Status>>;

    async fn wait_here(&self, _: Request<WaitHereRequest>) -> Result<Response<Self::WaitHereStream>, Status> {
        Err(Status::permission_denied("only between replicas"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { cluster: "west".into(), leader: 1, ..Default::default() }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let r = request.into_inner();
        self.note(format!("token {} {} {}", r.purpose, r.ttl_seconds, r.node));
        Ok(Response::new(CreateTokenResponse {
            token: "isthmus1.secret".into(),
            expires_unix: 1_790_000_000,
        }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::failed_precondition("the join token was used already, by east; make a new one"))
    }

    type ObserveStream = BoxStream<'static, Result<FlowBatch, Status>>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let r = request.into_inner();
        self.note(format!(
            "observe last={} follow={} {} {} {}",
            r.last, r.follow, r.verdict, r.namespace, r.workload
        ));
        let peer = |workload: &str| {
            Some(FlowPeer { address: "10.1.0.5".into(), identity: 300, workload: workload.into() })
        };
        let flow = Flow {
            verdict: "DROPPED".into(),
            policy: "networkpolicy/shop/pay#ingress[0]".into(),
            source: peer("shop/web"),
            destination: peer("shop/pay"),
            ..Default::default()
        };
        let batch = FlowBatch { flows: vec![flow], lost: 3 };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(batch)]))))
    }
}

/// A control plane for one test, in a folder of its own.
struct Cluster {
    folder: tempfile::TempDir,
    script: Arc<Scripted>,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Arc::new(Scripted::default());
        let listener = mesh_tls::grpc::bind_unix(folder.path().join("admin.sock"), 0o600).unwrap();
        let service = AdminServer::new(Server(script.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(mesh_tls::grpc::incoming_unix(listener)),
        );
        Self { folder, script }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    async fn run(&self, line: &str) -> Output {
        command(line).env("CLUSTERMESH_SOCKET", self.socket()).output().await.unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

fn command(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh"));
    command.args(line.split_whitespace()).stdin(Stdio::null()).env_remove("CLUSTERMESH_SOCKET");
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one sentence on stderr.
fn sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: pay, namespace: shop}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

#[tokio::test]
async fn an_unreachable_control_plane_is_code_69_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for line in ["status", "get svc", "token create --for peer", "observe"] {
        let output = command(line).env("CLUSTERMESH_SOCKET", &socket).output().await.unwrap();
        assert_eq!(output.status.code(), Some(69), "{line}");
        let sentence = sentence(&output);
        assert!(sentence.contains("none.sock") && sentence.contains("clustermesh init"), "{sentence}");
    }
}

#[tokio::test]
async fn objects_are_listed_in_every_format() {
    let cluster = Cluster::start();
    let table = cluster.run("get svc -n shop --no-headers").await;
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    assert!(out(&table).starts_with("pay    10.101.0.4   80/TCP"), "{}", out(&table));
    assert_eq!(cluster.asked(), ["list Service ns=shop name= l="]);
    assert_eq!(out(&cluster.run("get svc -A -o name").await), "service/pay\n");
    let json: Value = serde_json::from_str(&out(&cluster.run("get svc/pay -n shop -o json").await)).unwrap();
    assert_eq!(json, pay());
    let list: Value = serde_json::from_str(&out(&cluster.run("get svc -A -o json").await)).unwrap();
    assert_eq!(list["items"][0], pay());
    let yaml = out(&cluster.run("get svc pay -n shop -o yaml").await);
    assert!(yaml.contains("kind: Service\n") && yaml.contains("resourceVersion: \"7\""), "{yaml}");
    let described = out(&cluster.run("describe svc pay -n shop").await);
    assert!(described.contains("Revision:     7\n"), "{described}");
    let empty = cluster.run("get netpol").await;
    assert_eq!(empty.status.code(), Some(0));
    assert_eq!(sentence(&empty), "nothing found in namespace \"default\"");
}

#[tokio::test]
async fn what_is_not_there_is_code_3() {
    let cluster = Cluster::start();
    for line in ["get svc cards -n shop", "describe svc/cards -n shop", "delete svc cards -n shop"] {
        let output = cluster.run(line).await;
        assert_eq!(output.status.code(), Some(3), "{line}");
        assert!(sentence(&output).contains("service/cards not found"), "{line}");
    }
    let mixed = cluster.run("delete svc pay cards -n shop").await;
    assert_eq!((mixed.status.code(), out(&mixed)), (Some(3), "service/pay deleted\n".to_owned()));
    let ignored = cluster.run("delete svc pay cards -n shop --ignore-not-found").await;
    assert_eq!(ignored.status.code(), Some(0));
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_after_a_lost_leader_and_lists_again_after_compaction() {
    let cluster = Cluster::start();
    let output = cluster.run("get svc -n shop -w -l app=pay").await;
    let text = out(&output);
    // Heading, the list, a change, a removal, and what the second list brought back.
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.lines().nth(3).unwrap().ends_with("(deleted)"), "{text}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("trying again from revision 12"), "{said}");
    assert!(said.contains("what came after revision 12 is forgotten: listing again"), "{said}");
    assert_eq!(output.status.code(), Some(1), "the server refuses in the end: {said}");
    let list = "list Service ns=shop name= l=app=pay".to_owned();
    let watch = |from: u64| format!("watch from {from} l=app=pay");
    assert_eq!(cluster.asked(), [list.clone(), watch(7), watch(12), watch(12), list, watch(7)]);
    assert_eq!(cluster.run("get all -w").await.status.code(), Some(64));
}

#[tokio::test]
async fn files_folders_and_stdin_are_applied() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    cluster.script.wait.lock().unwrap().extend([
        WaitProgress { revision: 7, state: "waiting".into(), concerned: 2, acked: 1, ..Default::default() },
        WaitProgress { revision: 7, state: "done".into(), concerned: 2, acked: 2, ..Default::default() },
    ]);
    let output = cluster.run(&format!("apply -f {file} --wait --timeout 5s")).await;
    assert_eq!(out(&output), "service/pay created\nservice/web created\n");
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("acked 2/2\n"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let mut asked = cluster.asked();
    assert_eq!(asked.pop().unwrap(), "wait for 7 timeout=5000");
    let asked = asked.remove(0);
    assert!(asked.contains("\"namespace\":\"default\""), "{asked}");
    let mut child = command("apply -f - -n shop --dry-run")
        .env("CLUSTERMESH_SOCKET", cluster.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(SHOP.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(out(&output), "service/pay created (dry run)\nservice/web created (dry run)\n");
    let folder = cluster.folder.path().display().to_string();
    assert_eq!(cluster.run(&format!("apply -f {folder} -o name")).await.status.code(), Some(0));
}

#[tokio::test]
async fn bad_manifests_are_refused_before_anything_is_sent() {
    let cluster = Cluster::start();
    for (name, text, said) in [
        ("a.yaml", "kind: [", "a.yaml: line 1"),
        ("b.yaml", "apiVersion: v1\nkind: Service\nmetadata: {}\n", "b.yaml: metadata.name is missing"),
        ("c.yaml", "", "there is no object in"),
        ("d.json", "{\"kind\":", "no JSON"),
    ] {
        let file = cluster.file(name, text);
        let output = cluster.run(&format!("apply -f {file}")).await;
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(sentence(&output).contains(said), "{}", sentence(&output));
    }
    assert!(sentence(&cluster.run("apply -f /no/such.yaml").await).contains("/no/such.yaml"));
    assert!(cluster.asked().is_empty());
}

#[tokio::test]
async fn a_refused_object_is_named_by_file_and_document() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    let refusal = Status::invalid_argument("objects[1]: service/default/web: spec.prots: unknown field");
    *cluster.script.apply.lock().unwrap() = Some(Err(refusal));
    let output = cluster.run(&format!("apply -f {file}")).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        sentence(&output).ends_with("shop.yaml, document 2: service/default/web: spec.prots: unknown field"),
        "{}",
        sentence(&output)
    );
}

#[tokio::test]
async fn a_wait_that_is_not_met_is_code_4_a_refusal_6_and_a_lost_leader_69() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    for (state, code) in [("timed out", 4), ("refused", 6)] {
        let plane = WaitingFor {
            id: "agent~n1".into(),
            state: if code == 6 { "refused" } else { "pending" }.into(),
            error: "no such table".into(),
            ..Default::default()
        };
        let refused = u32::from(code == 6);
        let last = WaitProgress {
            revision: 8,
            state: state.into(),
            concerned: 1,
            refused,
            waiting_for: vec![plane],
            ..Default::default()
        };
        for line in
            [format!("apply -f {file} --wait --timeout 1s"), "delete svc pay -n shop --wait".to_owned()]
        {
            cluster.script.wait.lock().unwrap().push(last.clone());
            let output = cluster.run(&line).await;
            assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.lines().last().unwrap().contains("agent~n1"), "{said}");
            assert_eq!(said.contains("no such table"), code == 6, "{said}");
        }
    }
    *cluster.script.apply.lock().unwrap() = Some(Err(Status::unavailable("there is no leader")));
    let output = cluster.run(&format!("apply -f {file}")).await;
    assert_eq!(output.status.code(), Some(69));
    assert!(sentence(&output).contains("there is no leader"));
}

#[tokio::test]
async fn tokens_go_to_stdout_alone_and_bad_ones_are_refused_at_once() {
    let cluster = Cluster::start();
    let output = cluster.run("token create --for node --node west-n1 --ttl 10m").await;
    assert_eq!((out(&output), output.stderr.len()), ("isthmus1.secret\n".to_owned(), 0));
    assert_eq!(cluster.asked(), ["token node 600 west-n1"]);
    assert_eq!(cluster.run("token create --for peer --node x").await.status.code(), Some(64));

    let token = |purpose, expires_unix| {
        JoinToken {
            purpose,
            node: None,
            cluster: "east".into(),
            id: "t1".into(),
            secret: [1; 32],
            doors: vec!["192.0.2.1:9443".into()],
            root_sha256: [2; 32],
            expires_unix,
        }
        .encode()
        .unwrap()
    };
    for (text, said) in [
        ("nonsense".to_owned(), "no join token"),
        (token(Purpose::Node, u64::MAX), "for a node, not for a peer"),
        (token(Purpose::Peer, 1), "expired"),
        (token(Purpose::Peer, u64::MAX)[..60].to_owned(), "damaged"),
        // This one is sound: the control plane itself refuses it.
        (token(Purpose::Peer, u64::MAX), "used already"),
    ] {
        let output = cluster.run(&format!("join {text}")).await;
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(sentence(&output).contains(said), "{}", sentence(&output));
    }
}

#[tokio::test]
async fn flows_are_shown_with_their_policy() {
    let cluster = Cluster::start();
    let output = cluster.run("observe --last 5 --verdict dropped -n shop --workload web").await;
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("networkpolicy/shop/pay#ingress[0]"), "{}", out(&output));
    assert!(!out(&output).contains('\u{1b}'), "no colours into a pipe");
    assert!(sentence(&output).contains("3 flows were lost"));
    assert_eq!(cluster.asked(), ["observe last=5 follow=false DROPPED shop web"]);
    let json: Value = serde_json::from_str(&out(&cluster.run("observe -o json").await)).unwrap();
    assert_eq!(json["source"]["workload"], "shop/web");
}

#[tokio::test]
async fn status_and_completions_print_and_exit_with_0() {
    let cluster = Cluster::start();
    assert!(out(&cluster.run("status").await).starts_with("CLUSTER   TRUST-DOMAIN"));
    let json: Value = serde_json::from_str(&out(&cluster.run("status -o json").await)).unwrap();
    assert_eq!(json["cluster"], "west");
    for shell in ["bash", "zsh", "fish"] {
        let output = command(&format!("completions {shell}")).output().await.unwrap();
        assert!(output.status.success() && out(&output).contains("clustermesh"), "{shell}");
    }
}

#[tokio::test]
async fn usage_errors_are_code_2() {
    for line in ["", "frobnicate", "get", "get deploy", "get svc pay -A -n x", "delete svc", "apply"] {
        let output = command(line).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{line}: {output:?}");
    }
}

#[tokio::test]
async fn init_reports_a_control_plane_that_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("control-plane");
    std::fs::write(&program, "#!/bin/sh\necho 'error: the address is in use' >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let line = format!(
        "init --name west --data-dir {} --socket {} --control-plane {}",
        path("data"),
        path("run/admin.sock"),
        program.display()
    );
    let output = command(&line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(sentence(&output).contains("the address is in use"), "{}", sentence(&output));
    std::fs::write(folder.path().join("data/somebody-elses"), "").unwrap();
    let output = command(&line).output().await.unwrap();
    assert!(sentence(&output).contains("is not empty"), "{}", sentence(&output));
}

#[tokio::test]
async fn init_starts_a_control_plane_and_says_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("control-plane");
    // Says that it is ready, as the true one does, and ends when told to.
    let script = "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --ready-file ] && ready=$2; shift; done\n: > \"$ready\"\nexec sleep 5\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let line = format!(
        "init --name west --data-dir {} --socket {} --control-plane {}",
        path("data"),
        path("admin.sock"),
        program.display()
    );
    let output = command(&line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = out(&output);
    assert!(text.starts_with("west is up (trust domain west.mesh.local, process "), "{text}");
    assert!(text.contains("token create --for peer"), "{text}");
}
