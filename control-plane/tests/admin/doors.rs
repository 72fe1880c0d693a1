//! Nobody gets in who should not: not without a certificate, not with a wrong one, not in the clear, not by another
//! user's hand.

use std::{os::unix::fs::PermissionsExt, time::SystemTime};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, Identity, PeerPolicy, SharedIdentity, certified, client_config, csr, grpc, shared_identity,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status, transport::Channel};
use xds_proto::envoy::service::status::v3::{
    ClientStatusRequest, client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
};
use xds_proto::isthmus::{
    admin::v1::{
        StatusRequest, WaitHereRequest, WaitRequest, WatchRequest, admin_client::AdminClient,
        recovery_client::RecoveryClient, replicas_client::ReplicasClient, tokens_client::TokensClient, *,
    },
    bootstrap::v1::{
        FlowBatch, RegisterNodeRequest, RegisterReplicaRequest, RemoveEndpointRequest, RenewNodeRequest,
        ReportEndpointRequest, SignWorkloadRequest, bootstrap_client::BootstrapClient,
        certificates_client::CertificatesClient, endpoints_client::EndpointsClient,
    },
    ca::v1::{self as ca, certificate_authority_client::CertificateAuthorityClient},
    federation::v1::{self as federation, federation_client::FederationClient},
    raft::v1::{Payload, raft_client::RaftClient},
};

use crate::{common::Cluster, raw::Raw};

/// What every method behind the mesh door answers to a caller.
async fn knock(channel: &Channel) -> Vec<(&'static str, Status)> {
    let mut admin = AdminClient::new(channel.clone());
    let mut raft = RaftClient::new(channel.clone());
    let mut bootstrap = BootstrapClient::new(channel.clone());
    let mut certificates = CertificatesClient::new(channel.clone());
    let mut endpoints = EndpointsClient::new(channel.clone());
    let mut federation = FederationClient::new(channel.clone());
    let mut tokens = TokensClient::new(channel.clone());
    let mut replicas = ReplicasClient::new(channel.clone());
    let mut recovery = RecoveryClient::new(channel.clone());
    let mut authority = CertificateAuthorityClient::new(channel.clone());
    let mut clients = ClientStatusDiscoveryServiceClient::new(channel.clone());
    let mut answers = Vec::new();
    macro_rules! ask {
        ($($client:ident . $method:ident ( $request:expr )),+ $(,)?) => {
            $(match $client.$method($request).await {
                Err(status) => answers.push((stringify!($method), status)),
                Ok(_) => panic!("{} is open", stringify!($method)),
            })+
        };
    }
    ask!(
        admin.apply(ApplyRequest::default()),
        admin.delete(DeleteRequest::default()),
        admin.list(ListRequest { kind: "all".to_owned(), ..Default::default() }),
        admin.watch(WatchRequest { kind: "all".to_owned(), ..Default::default() }),
        admin.status(StatusRequest {}),
        admin.create_token(CreateTokenRequest { purpose: "node".to_owned(), ..Default::default() }),
        admin.join(JoinRequest::default()),
        admin.observe(ObserveRequest::default()),
        admin.wait(WaitRequest { revision: 1, timeout_ms: 1 }),
        admin.wait_here(WaitHereRequest { revision: 1 }),
        raft.append_entries(Payload::default()),
        raft.vote(Payload::default()),
        raft.forward(Payload::default()),
        raft.read_index(Payload::default()),
        bootstrap.register_node(RegisterNodeRequest::default()),
        bootstrap.register_replica(RegisterReplicaRequest::default()),
        certificates.sign_workload(SignWorkloadRequest::default()),
        certificates.renew_node(RenewNodeRequest::default()),
        endpoints.report(ReportEndpointRequest::default()),
        endpoints.remove(RemoveEndpointRequest::default()),
        endpoints.report_flows(tokio_stream::iter([FlowBatch::default()])),
        federation.join(federation::JoinRequest::default()),
        federation.confirm_trust(federation::ConfirmTrustRequest::default()),
        tokens.list(ListTokensRequest {}),
        tokens.revoke(RevokeTokenRequest { id: "x".to_owned() }),
        replicas.remove(RemoveReplicaRequest { id: 1 }),
        replicas.set_role(SetReplicaRoleRequest { id: 1, learner: true }),
        recovery.backup(BackupRequest {}),
        recovery.replace(ReplaceRequest::default()),
        recovery.rejoin(RejoinRequest {}),
        authority.status(ca::StatusRequest {}),
        authority.rotate(ca::RotateRequest::default()),
        authority.list_nodes(ca::ListNodesRequest {}),
        authority.revoke_node(ca::NodeRequest { name: "n1".to_owned() }),
        authority.remove_node(ca::NodeRequest { name: "n1".to_owned() }),
        authority.create_administrator(ca::CreateAdministratorRequest {
            name: "kim".to_owned(),
            csr: crate::common::anybodys_csr().0,
            valid_seconds: 60,
        }),
        authority.list_administrators(ca::ListAdministratorsRequest {}),
        authority.revoke_administrator(ca::RevokeAdministratorRequest { name: "kim".to_owned() }),
        clients.fetch_client_status(ClientStatusRequest::default()),
    );
    let subscribing = match Raw::open(channel.clone(), "type.googleapis.com/isthmus.agent.v1.Service").await {
        Ok(mut raw) => raw.next().await.unwrap_err(),
        Err(status) => status,
    };
    answers.push(("delta_aggregated_resources", subscribing));
    answers
}

/// A token is asked of those who may have no certificate yet; everything else is refused for lack of one.
fn is_by_token(method: &str) -> bool {
    ["register_node", "register_replica", "join"].contains(&method)
}

#[tokio::test]
async fn without_a_certificate_every_door_is_closed() {
    let cluster = Cluster::start("west").await;
    let answers = knock(&cluster.connect(None).await.unwrap()).await;
    assert_eq!(answers.len(), 40);
    for (method, status) in answers {
        let refused = match is_by_token(method) {
            true => matches!(status.code(), Code::InvalidArgument | Code::Unauthenticated),
            false => status.code() == Code::Unauthenticated,
        };
        assert!(refused, "{method}: {status}");
    }
}

/// A certificate of this cluster that is genuine, under a number.
fn identity(cluster: &Cluster, id: &SpiffeId, number: u64) -> SharedIdentity {
    let (request, key) = csr::generate(id).unwrap();
    let life = std::time::Duration::from_secs(3600);
    let chain = cluster.running.app.ca.sign(&request, id, number, life, SystemTime::now()).unwrap();
    let chain = chain.into_iter().map(Into::into).collect();
    shared_identity(Some(certified(Identity { chain, key }).unwrap()))
}

async fn every_door_is_closed_to(cluster: &Cluster, identity: SharedIdentity) {
    for (method, status) in knock(&cluster.connect(Some(identity)).await.unwrap()).await {
        let refused = match is_by_token(method) {
            true => matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied),
            false => status.code() == Code::PermissionDenied,
        };
        assert!(refused, "{method}: {status}");
    }
}

#[tokio::test]
async fn with_a_workloads_certificate_every_door_is_closed_too() {
    let cluster = Cluster::start("west").await;
    let id = SpiffeId::workload(&cluster.trust_domain(), "shop", "pay");
    every_door_is_closed_to(&cluster, identity(&cluster, &id, 0)).await;
}

/// Signed by the cluster's own issuer, but not on its record: without a number, under one that nobody has, and under one
/// of another administrator.
#[tokio::test]
async fn an_administrators_certificate_that_the_cluster_does_not_know_opens_nothing() {
    let cluster = Cluster::start("west").await;
    let request = ca::CreateAdministratorRequest {
        name: "kim".to_owned(),
        csr: crate::common::anybodys_csr().0,
        valid_seconds: 3600,
    };
    let mut authority = CertificateAuthorityClient::new(cluster.admin_channel.clone());
    let granted = authority.create_administrator(request).await.unwrap().into_inner();
    let id = |name: &str| SpiffeId::admin(&cluster.trust_domain(), name);
    assert_eq!(crate::common::spiffe_id(&granted.chain), id("kim"));
    for (name, number) in [("kim", 0), ("kim", granted.number + 1), ("lee", granted.number)] {
        every_door_is_closed_to(&cluster, identity(&cluster, &id(name), number)).await;
    }
    let known = identity(&cluster, &id("kim"), granted.number);
    let mut admin = AdminClient::new(cluster.connect(Some(known)).await.unwrap());
    admin.status(StatusRequest {}).await.unwrap();
}

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
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not run: only root can become another user");
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
