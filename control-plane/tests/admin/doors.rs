//! Nobody gets in who should not: not with a certificate of another's, not in the clear, not by another user's hand. Who
//! may do what once he is in: `roles`.

use std::{os::unix::fs::PermissionsExt, time::SystemTime};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{ALPN_H2, Identity, PeerPolicy, certified, client_config, csr, grpc, shared_identity};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status};
use xds_proto::isthmus::admin::v1::{StatusRequest, admin_client::AdminClient};

use crate::{common::Cluster, privileged::privileged};

#[tokio::test]
async fn a_certificate_of_somebody_elses_root_does_not_pass_the_handshake() {
    let cluster = Cluster::start("west").await;
    let other = Cluster::start("west").await;
    let id = SpiffeId::admin(&cluster.trust_domain(), "root");
    let (request, key) = csr::generate(&id).unwrap();
    let life = std::time::Duration::from_secs(3600);
    let chain = other.running.app.ca.sign(&request, &id, 0, life, SystemTime::now()).unwrap();
    let chain = chain.into_iter().map(Into::into).collect();
    let impostor = shared_identity(Some(certified(Identity { chain, key }).unwrap()));
    // In TLS 1.3 a client hears of it with its first read.
    let Ok(channel) = cluster.connect(Some(impostor)).await else { return };
    let status = AdminClient::new(channel).status(StatusRequest {}).await.unwrap_err();
    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal), "{status}");
}

#[tokio::test]
async fn a_replica_with_another_root_is_not_talked_to() {
    let cluster = Cluster::start("west").await;
    let other = Cluster::start("west").await;
    let policy = PeerPolicy::Replicas(cluster.trust_domain());
    let tls = client_config(None, other.bundles(), policy, &[ALPN_H2]).unwrap();
    assert!(grpc::connect(&cluster.door(), tls, "replica.isthmus").await.is_err());
    let stranger = PeerPolicy::Replicas(TrustDomain::parse("east.example").unwrap());
    let tls = client_config(None, cluster.bundles(), stranger, &[ALPN_H2]).unwrap();
    assert!(grpc::connect(&cluster.door(), tls, "replica.isthmus").await.is_err());
}

#[tokio::test]
async fn nothing_is_served_in_the_clear() {
    let cluster = Cluster::start("west").await;
    // HTTP/2 with prior knowledge, and a request of HTTP/1.1.
    for hello in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(cluster.running.door).await.unwrap();
        stream.write_all(hello).await.unwrap();
        let mut answer = Vec::new();
        // An alert at most, and then the end.
        let _ = stream.read_to_end(&mut answer).await;
        let alert = answer.first().is_none_or(|kind| *kind == 0x15);
        assert!(alert && answer.len() < 16, "{answer:?}");
    }
}

/// The admin socket is the kernel's to guard first (mode 0600), and ours by peer credentials: the mode is opened here,
/// so that only the second one is left.
#[tokio::test]
async fn the_admin_socket_knows_other_users_by_their_credentials() {
    if !privileged("becoming another user") {
        return;
    }
    let cluster = Cluster::start("west").await;
    let socket = cluster.folder().join("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for path in [cluster.folder().to_path_buf(), socket.clone()] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let as_user = |uid: u32| {
        // setpriv(1) changes the user of one child, and nothing of this process.
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "doors::asks_for_the_status", "--ignored", "--nocapture"]);
        child.env("ISTHMUS_TEST_SOCKET", &socket).uid(uid).gid(uid);
        child
    };
    // The test's binary may be in a folder that others can't enter: then it is run from a copy.
    let copy = cluster.folder().join("test-binary");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut stranger = tokio::process::Command::new(&copy);
    stranger.args(["--exact", "doors::asks_for_the_status", "--ignored", "--nocapture"]);
    stranger.env("ISTHMUS_TEST_SOCKET", &socket).uid(65_534).gid(65_534).current_dir("/");
    let refused = stranger.output().await.unwrap();
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(said.contains("answer: Unauthenticated"), "{refused:?}");
    let root = as_user(0).output().await.unwrap();
    assert!(String::from_utf8_lossy(&root.stdout).contains("answer: Ok"), "{root:?}");
}

/// Not a test of its own: what the one above runs as another user.
#[tokio::test]
#[ignore = "run by the_admin_socket_knows_other_users_by_their_credentials"]
async fn asks_for_the_status() {
    let Some(socket) = std::env::var_os("ISTHMUS_TEST_SOCKET") else { return };
    let answer = match grpc::connect_unix(std::path::PathBuf::from(socket)).await {
        Ok(channel) => AdminClient::new(channel).status(StatusRequest {}).await,
        Err(error) => Err(Status::unknown(error.to_string())),
    };
    println!("answer: {:?}", answer.map_or_else(|status| status.code(), |_| Code::Ok));
}
