//! The root of a cluster is replaced under load: three replicas over their real doors, two nodes that follow their
//! bundles as agents do, and mTLS between their workloads that is never interrupted.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{Cluster, SOON, anybodys_csr, pod, register, run, show};
use mesh_model::identity::TrustDomain;
use mesh_store::{Phase, fingerprint_of};
use mesh_tls::{
    CertificateDer, ClientAuth, PeerPolicy, SharedBundles, SharedIdentity, TrustBundles, client_config,
    fingerprint, grpc, root_of, server_config, shared_identity,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tonic::transport::Channel;
use xds_client::{Config, Subscription};
use xds_proto::{
    isthmus::{
        admin::v1::JoinRequest,
        agent::v1::TrustBundle,
        bootstrap::v1::{
            RenewNodeRequest, ReportTrustRequest, SignWorkloadRequest,
            certificates_client::CertificatesClient, endpoints_client::EndpointsClient,
        },
        ca::v1::{RotateRequest, StatusRequest, certificate_authority_client::CertificateAuthorityClient},
    },
    type_url,
};

const WORKLOADS: &str = "\
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: one, namespace: shop}
spec: {serviceAccount: one, proxy: sidecar}
---
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: two, namespace: shop}
spec: {serviceAccount: two, proxy: sidecar}
---
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: three, namespace: shop}
spec: {serviceAccount: three, proxy: sidecar}";

/// A node with one workload, as its agent keeps it.
struct Node {
    workload: SharedIdentity,
    bundles: SharedBundles,
    /// What it would report is held back while this is false.
    reports: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Node {
    async fn start(cluster: &mut Cluster, name: &str, workload: &str) -> Self {
        let token = cluster.token("node").await;
        let (answer, identity) = register(&cluster.door(), &token, name).await.unwrap();
        let bundles = cluster.bundles();
        let own = cluster.trust_domain();
        let tls = client_config(
            Some(identity.clone()),
            bundles.clone(),
            PeerPolicy::Replicas(own.clone()),
            &[mesh_tls::ALPN_H2],
        )
        .unwrap();
        let channel = grpc::connect(&cluster.door(), tls, "replica.isthmus").await.unwrap();
        EndpointsClient::new(channel.clone()).report(pod(&answer.pod_cidr, workload)).await.unwrap();
        let (latest, told) = watch::channel(TrustBundle::default());
        let (reports, may_report) = watch::channel(true);
        let mut tasks = JoinSet::new();
        let (subscribing, trusted) = (channel.clone(), bundles.clone());
        tasks.spawn(async move {
            let node = xds_client::node("agent", "west");
            let config = Config::new(node, vec![Subscription::wildcard(type_url::<TrustBundle>())]);
            let handler = |update: xds_client::Update| {
                for resource in &update.added {
                    let bundle: TrustBundle = resource.decode().map_err(|e| e.to_string())?;
                    let mut fresh = TrustBundles::new();
                    let roots = bundle.roots.iter().cloned().map(CertificateDer::from).collect();
                    let domain = TrustDomain::parse(&bundle.trust_domain).map_err(|e| e.to_string())?;
                    fresh.insert(domain, roots).map_err(|e| e.to_string())?;
                    trusted.store(Arc::new(fresh));
                    latest.send_replace(bundle);
                }
                Ok(())
            };
            let (_, commands) = tokio::sync::mpsc::channel(1);
            let connect = || {
                let channel = subscribing.clone();
                async move { Ok::<_, String>(channel) }
            };
            xds_client::run(config, connect, handler, commands).await;
        });
        let shown = shared_identity(None);
        sign(&channel, workload, &shown).await;
        tasks.spawn(follow(channel, workload.to_owned(), identity, shown.clone(), told, may_report));
        Self { workload: shown, bundles, reports, tasks }
    }
}

async fn sign(channel: &Channel, workload: &str, into: &SharedIdentity) {
    let (csr, key) = anybodys_csr();
    let request = SignWorkloadRequest { namespace: "shop".to_owned(), workload: workload.to_owned(), csr };
    let answer = CertificatesClient::new(channel.clone()).sign_workload(request).await.unwrap().into_inner();
    show(&answer.chain, key, into);
}

async fn renew(channel: &Channel, into: &SharedIdentity) {
    let (csr, key) = anybodys_csr();
    let request = RenewNodeRequest { csr };
    let answer = CertificatesClient::new(channel.clone()).renew_node(request).await.unwrap().into_inner();
    show(&answer.chain, key, into);
}

fn under(identity: &SharedIdentity, roots: &[Vec<u8>]) -> String {
    let roots: Vec<_> = roots.iter().cloned().map(CertificateDer::from).collect();
    let chain = identity.load().as_ref().unwrap().cert.clone();
    let root = root_of(&chain, &roots).map(fingerprint).unwrap_or_default();
    root.iter().map(|b| format!("{b:02x}")).collect()
}

/// Replaces what is not of the active root, and reports.
async fn follow(
    channel: Channel,
    workload: String,
    node: SharedIdentity,
    shown: SharedIdentity,
    mut told: watch::Receiver<TrustBundle>,
    mut may_report: watch::Receiver<bool>,
) {
    loop {
        let bundle = told.borrow_and_update().clone();
        if bundle.generation > 0 {
            if under(&shown, &bundle.roots) != bundle.active_root {
                sign(&channel, &workload, &shown).await;
            }
            if under(&node, &bundle.roots) != bundle.active_root {
                renew(&channel, &node).await;
            }
            may_report.wait_for(|may| *may).await.unwrap();
            let both = [under(&shown, &bundle.roots), under(&node, &bundle.roots)];
            let root_sha256 = if both[0] == both[1] { both[0].clone() } else { String::new() };
            let report = ReportTrustRequest { generation: bundle.generation, root_sha256 };
            CertificatesClient::new(channel.clone()).report_trust(report).await.unwrap();
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

/// Answers each byte with itself, on any number of connections.
async fn echo(listener: TcpListener, node: (SharedIdentity, SharedBundles)) {
    let tls = server_config(node.0, node.1, ClientAuth::Required(PeerPolicy::AnyMeshIdentity), &[]).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            let Ok(mut stream) = acceptor.accept(tcp).await else { return };
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
        });
    }
}

type Connection = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(client: &Node, address: std::net::SocketAddr) -> Connection {
    let policy = PeerPolicy::AnyMeshIdentity;
    let tls = client_config(Some(client.workload.clone()), client.bundles.clone(), policy, &[]).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("two.shop").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.unwrap();
    ping(&mut stream).await;
    stream
}

async fn ping(stream: &mut Connection) {
    stream.write_all(&[7]).await.unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    assert_eq!(byte, [7]);
}

/// Waits for a state; what members confirm makes no revision, so it is looked at again and again.
async fn until(cluster: &Cluster, what: &str, holds: impl Fn(&mesh_store::State) -> bool) {
    let waiting = async {
        while !holds(&cluster.running.app.replica.applied()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

fn authority(cluster: &Cluster) -> CertificateAuthorityClient<Channel> {
    CertificateAuthorityClient::new(cluster.admin_channel.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_drops_no_connection_and_every_handshake_succeeds_in_every_phase() {
    let mut west = Cluster::start("west").await;
    let mut others = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let token = west.token("replica").await;
        others.push((run(folder.path(), &["--join", &token]).await, folder));
    }
    west.apply(WORKLOADS).await.unwrap();
    let one = Node::start(&mut west, "n1", "one").await;
    let two = Node::start(&mut west, "n2", "two").await;
    until(&west, "copies of the key for everybody", |state| {
        state.authority.roots.values().all(|root| root.sealed.len() == 3)
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(echo(listener, (two.workload.clone(), two.bundles.clone())));

    let mut kept = connect(&one, address).await;
    let old = west.running.app.ca.roots();
    let pings = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(false);
    let counted = pings.clone();
    let steady = tokio::spawn(async move {
        while !*stopped.borrow() {
            ping(&mut kept).await;
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });

    // The node two does not report: nothing is signed by the new root before it trusts it.
    two.reports.send_replace(false);
    let answer = authority(&west).rotate(RotateRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.rotation.unwrap().phase, "preparing");
    until(&west, "only node n2 is waited for", |state| {
        let rotation = state.authority.rotation.as_ref().unwrap();
        mesh_store::missing(state, rotation) == [mesh_store::Member::Node("n2".to_owned())]
    })
    .await;
    let state = west.running.app.replica.applied();
    assert_eq!(state.authority.rotation.as_ref().unwrap().phase, Phase::Preparing);
    assert_eq!(state.cluster.as_ref().unwrap().roots.len(), 2);
    assert_eq!(state.authority.active, fingerprint_of(&old[0]));
    drop(state);
    connect(&one, address).await;
    two.reports.send_replace(true);

    // From here on it goes by itself; every moment of it is good for a handshake.
    let over = async {
        let mut phases = std::collections::BTreeSet::new();
        loop {
            connect(&one, address).await;
            let state = west.running.app.replica.applied();
            match &state.authority.rotation {
                Some(rotation) => drop(phases.insert(rotation.phase.as_str())),
                None => return phases,
            }
        }
    };
    tokio::time::timeout(SOON, over).await.unwrap();
    connect(&one, address).await;
    let before = pings.load(Ordering::Relaxed);
    assert!(before > 0);
    stop.send_replace(true);
    steady.await.unwrap();

    let status = authority(&west).status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.roots.len(), status.rotations), (1, 1));
    assert_ne!(status.roots[0].sha256, fingerprint_of(&old[0]));
    assert_eq!(status.roots[0].sealed_to, [1, 2, 3]);
    let new = vec![west.running.app.ca.roots()[0].to_vec()];
    for identity in [&one.workload, &two.workload] {
        assert_eq!(under(identity, &new), status.roots[0].sha256);
    }
    // A newcomer finds its way by a token of now.
    let _late = Node::start(&mut west, "n3", "three").await;
    drop((one.tasks, two.tasks));
    for (running, _folder) in others {
        running.drain(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_the_new_root_before_it_signs_and_forgets_the_old_one_after() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    let token = east.token("peer").await;
    west.admin.join(JoinRequest { token }).await.unwrap();
    let old = fingerprint_of(&west.running.app.ca.roots()[0]);
    until(&west, "the key is sealed", |s| s.authority.roots.values().all(|root| root.sealed.len() == 1))
        .await;
    authority(&west).rotate(RotateRequest::default()).await.unwrap();
    let roots = |state: &mesh_store::State| -> Vec<String> {
        state.peers["west"].roots.iter().map(|der| fingerprint_of(der)).collect()
    };
    // West does not go on before east has confirmed, so both roots are seen there.
    until(&west, "the peer has confirmed", |state| {
        state.authority.confirmed_peers.get("east").is_some_and(|told| told.generation >= 2)
            || state.authority.rotation.is_none()
    })
    .await;
    until(&west, "the rotation is over", |state| state.authority.rotation.is_none()).await;
    until(&east, "the old root is gone", |state| {
        let roots = roots(state);
        roots.len() == 1 && roots[0] != old
    })
    .await;
    assert!(west.running.app.replica.applied().authority.confirmed_peers.contains_key("east"));
}
