//! A control plane that answers from a script, and the command line that asks it.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::{
    admin::v1::{
        LoadHereRequest, LoadReports,
        admin_server::{Admin, AdminServer},
        *,
    },
    bootstrap::v1::{Flow, FlowBatch, FlowPeer},
};

/// Answers from a script, and remembers what it was asked.
#[derive(Default)]
pub struct Scripted {
    pub asked: Mutex<Vec<String>>,
    pub apply: Mutex<Option<Result<ApplyResponse, Status>>>,
    pub wait: Mutex<Vec<WaitProgress>>,
    pub watches: Mutex<u32>,
}

pub fn pay() -> Value {
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

    async fn load_here(&self, _: Request<LoadHereRequest>) -> Result<Response<LoadReports>, Status> {
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
            Some(FlowPeer {
                address: "10.1.0.5".into(),
                identity: 300,
                workload: workload.into(),
                ..FlowPeer::default()
            })
        };
        let flow = Flow {
            verdict: "DROPPED".into(),
            policy: "networkpolicy/shop/pay#ingress[0]".into(),
            source: peer("shop/web"),
            destination: peer("shop/pay"),
            ..Default::default()
        };
        let batch = FlowBatch { flows: vec![flow], lost: 3, sources: Vec::new() };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(batch)]))))
    }
}

/// A control plane for one test, in a folder of its own.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub script: Arc<Scripted>,
}

impl Cluster {
    pub fn start() -> Self {
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

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub async fn run(&self, line: &str) -> Output {
        command(line).env("CLUSTERMESH_SOCKET", self.socket()).output().await.unwrap()
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

pub fn command(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh"));
    command.args(line.split_whitespace()).stdin(Stdio::null()).env_remove("CLUSTERMESH_SOCKET");
    command
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one sentence on stderr.
pub fn sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

pub const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: pay, namespace: shop}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
