//! The mesh that is served: nodes with workloads, each an endpoint of a service.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tonic::transport::Channel;
use xds_proto::isthmus::admin::v1::{ApplyRequest, CreateTokenRequest, admin_client::AdminClient};

use super::Node;
use crate::process::{Process, free_ports};

/// Workloads that run on one node; with the agent that makes 50 streams to a node.
pub const WORKLOADS_PER_NODE: usize = 49;
/// Endpoints of a service. As many in a large mesh as in a small one: a changed service is sent whole.
const ENDPOINTS: usize = 10;
/// Addresses of workloads: loopback, so that an Envoy that stands for one can listen there. Room for 256 nodes.
const PODS: &str = "127.64.0.0/16";
/// Objects in one write.
const BATCH: usize = 200;
/// Calls at once while the mesh is set up.
const AT_ONCE: usize = 64;
/// Longest wait for the replica to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Nodes that have workloads; at most 256.
    pub nodes: usize,
    /// Services. The first ones have ten workloads each, as long as there are any.
    pub services: usize,
}

/// A replica with a mesh in it.
#[derive(Debug)]
pub struct World {
    /// The replica.
    pub process: Process,
    /// Its nodes.
    pub nodes: Vec<Node>,
}

impl World {
    /// Starts a replica in a folder and fills it.
    pub async fn start(folder: &Path, size: Size) -> Result<Self> {
        let program = crate::control::beside("control-plane")?;
        let [port] = free_ports()?;
        let socket = folder.join("replica.sock");
        let text = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> =
            ["run", "--name", "bench", "--trust-domain", "bench.example"].map(str::to_owned).to_vec();
        arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        arguments.extend(["--pod-cidr".to_owned(), PODS.to_owned()]);
        arguments.extend(["--data-dir".to_owned(), text(&folder.join("data"))]);
        arguments.extend(["--admin-socket".to_owned(), text(&socket)]);
        // Hundreds of nodes join from one address here, which they do not in life.
        arguments.extend(["--limit".to_owned(), "newcomer-requests=100000".to_owned()]);
        let process = Process::start("control-plane", &program, &arguments, &folder.join("log"))?;
        let admin =
            tokio::time::timeout(PATIENCE, founded(&socket)).await.context("the replica does not start")?;
        let nodes = stream::iter(0..size.nodes).map(|number| register(admin.clone(), number));
        let nodes: Vec<Node> = nodes.buffered(AT_ONCE).try_collect().await?;
        let services = (0..size.services).map(service);
        let workloads = (0..size.nodes * WORKLOADS_PER_NODE).map(|number| workload(number, size.services));
        let objects: Vec<Value> = services.chain(workloads).collect();
        for batch in objects.chunks(BATCH) {
            let objects = batch.iter().map(|object| object.to_string().into_bytes()).collect();
            admin.clone().apply(ApplyRequest { objects, ..Default::default() }).await?;
        }
        let bind = |(index, node): (usize, Node)| async move {
            let channel = node.connect().await?;
            let bound = stream::iter(0..WORKLOADS_PER_NODE).map(|place| {
                let (node, channel) = (node.clone(), channel.clone());
                async move {
                    node.report(
                        channel,
                        &workload_name(index * WORKLOADS_PER_NODE + place),
                        host(place),
                        true,
                    )
                    .await
                }
            });
            bound.buffer_unordered(8).try_collect::<Vec<u64>>().await?;
            anyhow::Ok(())
        };
        stream::iter(nodes.iter().cloned().enumerate())
            .map(bind)
            .buffer_unordered(8)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(Self { process, nodes })
    }

    /// One endpoint changes: a workload of the first node becomes unready, or ready again with the number after. Returns
    /// the revision, durable.
    pub async fn flip(&self, channel: Channel, number: usize) -> Result<u64> {
        let (place, ready) = (number / 2 % WORKLOADS_PER_NODE, number % 2 == 1);
        self.nodes[0].report(channel, &workload_name(place), host(place), ready).await
    }
}

/// Last part of a workload's address; the first ones are the node's own.
fn host(place: usize) -> usize {
    place + 10
}

/// A workload's name, among all.
pub fn workload_name(number: usize) -> String {
    format!("w{number}")
}

async fn founded(socket: &Path) -> AdminClient<Channel> {
    loop {
        if let Ok(channel) = mesh_tls::grpc::connect_unix(socket).await {
            let mut admin = AdminClient::new(channel);
            if token(&mut admin).await.is_ok() {
                return admin;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn token(admin: &mut AdminClient<Channel>) -> Result<String> {
    let request = CreateTokenRequest { purpose: "node".to_owned(), ..Default::default() };
    Ok(admin.create_token(request).await?.into_inner().token)
}

async fn register(mut admin: AdminClient<Channel>, number: usize) -> Result<Node> {
    let token = token(&mut admin).await?;
    let address = format!("192.0.{}.{}", 2 + number / 200, 1 + number % 200);
    Node::register(&token, &format!("n{number}"), &address).await
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{number}"), "namespace": "bench"},
        "spec": {
            "selector": {"app": format!("s{number}")},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"}],
        },
    })
}

fn workload(number: usize, services: usize) -> Value {
    let service = number / ENDPOINTS;
    let app = if service < services { format!("s{service}") } else { "alone".to_owned() };
    json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"name": workload_name(number), "namespace": "bench", "labels": {"app": app}},
        "spec": {"serviceAccount": app, "proxy": "sidecar", "ports": [{"port": 8080}]},
    })
}
