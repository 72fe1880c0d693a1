//! Every method, called by everybody: what is refused is what the table refuses, by its own sentence, and nothing else.

use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut};
use control_plane::authz::{Role, allowed};
use mesh_model::identity::SpiffeId;
use mesh_tls::{Identity, SharedIdentity, certified, csr, grpc, shared_identity};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use xds_proto::isthmus::{
    admin::v1::JoinRequest,
    ca::v1::{
        CreateAdministratorRequest, NodeRequest, certificate_authority_client::CertificateAuthorityClient,
    },
};

use crate::{
    common::{self, Cluster, SOON},
    methods::{self, AGENTS, Door, Method, NOT_SERVED},
};

/// Messages as they are: whatever the method, an empty one is asked.
#[derive(Debug, Default, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// What an empty request is answered.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let calling = async {
        let mut client = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(path).unwrap();
        let request = Request::new(tokio_stream::iter([Vec::new()]));
        // Whatever it takes is looked at before anything is answered.
        client.streaming(request, path, Plain).await.map(drop)
    };
    tokio::time::timeout(SOON, calling).await.unwrap_or_else(|_| panic!("{path} does not answer"))
}

/// What the table says of a method and a role, against what was answered.
fn judge(method: &Method, role: Role, answer: &Result<(), Status>) {
    let what = format!("{role:?} {}: {answer:?}", method.path);
    let refused = method.actions.last().map(|action| format!("may not do this ({action:?})")).unwrap();
    let by_table = answer.as_ref().is_err_and(|status| status.message().contains(&refused));
    let open = method.actions.iter().any(|action| allowed(role, *action));
    assert_eq!(by_table, !open, "{what}");
    let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
    // Hubble's events of agents are listed because its clients ask for them, and say that there are none.
    let is_event = method.path.ends_with("Events");
    // Internal: the service asks for another right than the door does.
    assert!(code != Code::Internal && (code != Code::Unimplemented || is_event), "{what}");
    if !open {
        let by_nobody = role == Role::Anonymous;
        let wanted = if by_nobody { Code::Unauthenticated } else { Code::PermissionDenied };
        assert_eq!(code, wanted, "{what}");
    }
}

/// A certificate of this cluster's authority, for whatever it is asked for.
fn signed(cluster: &Cluster, id: &SpiffeId, number: u64, life: Duration, now: SystemTime) -> SharedIdentity {
    let (request, key) = csr::generate(id).unwrap();
    let chain = cluster.running.app.ca.sign(&request, id, number, life, now).unwrap();
    let chain = chain.into_iter().map(Into::into).collect();
    shared_identity(Some(certified(Identity { chain, key }).unwrap()))
}

/// A certificate that the cluster gave an administrator and has on record, and its number there.
pub async fn administrator(cluster: &Cluster, name: &str) -> (SharedIdentity, u64) {
    let (csr, key) = common::anybodys_csr();
    let request = CreateAdministratorRequest { name: name.to_owned(), csr, valid_seconds: 3_600 };
    let mut authority = CertificateAuthorityClient::new(cluster.admin_channel.clone());
    let granted = authority.create_administrator(request).await.unwrap().into_inner();
    assert_eq!(common::spiffe_id(&granted.chain), SpiffeId::admin(&cluster.trust_domain(), name));
    let identity = shared_identity(None);
    common::show(&granted.chain, key, &identity);
    (identity, granted.number)
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_is_open_to_those_whom_the_table_names_and_closed_to_all_others() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    let token = east.token("peer").await;
    west.admin.join(JoinRequest { token }).await.unwrap();
    let domain = west.trust_domain();
    let now = SystemTime::now();
    let node = west.node("n1").await;
    let of_east = east.node("n1").await.identity;
    let mut callers = vec![
        (Role::Anonymous, None),
        (Role::Workload, Some(signed(&west, &SpiffeId::workload(&domain, "shop", "pay"), 0, HOUR, now))),
        (Role::Stranger, Some(of_east)),
        (Role::Peer, Some(east.running.app.ca.own().clone())),
        (Role::Node, Some(node.identity.clone())),
        (Role::Replica, Some(west.running.app.ca.own().clone())),
    ];
    // Last: of what it asks for, some happens.
    callers.push((Role::Admin, Some(administrator(&west, "kim").await.0)));
    let mut calls = 0;
    for (role, identity) in callers {
        let channel = west.connect(identity).await.unwrap();
        for method in methods::all() {
            judge(&method, role, &call(&channel, &method.path).await);
            calls += 1;
        }
        for path in NOT_SERVED.iter().map(|path| format!("/{path}")).chain(agents()) {
            let answer = call(&channel, &path).await.unwrap_err();
            assert_eq!(answer.code(), Code::Unimplemented, "{role:?} {path}: {answer}");
        }
    }
    println!("{calls} calls by the mesh door");

    // The administrators' socket, as root or the process's own user.
    let socket = grpc::connect_unix(west.folder().join("admin.sock")).await.unwrap();
    for method in methods::all() {
        let answer = call(&socket, &method.path).await;
        match method.door {
            Door::Both => judge(&method, Role::LocalRoot, &answer),
            Door::Mesh => assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{}", method.path),
        }
    }
}

/// Signed by the cluster's own issuer, but not on its record: without a number, under one that nobody has, and under one
/// of another administrator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrators_certificate_that_the_cluster_does_not_know_opens_nothing() {
    let west = Cluster::start("west").await;
    let (_, number) = administrator(&west, "kim").await;
    for (name, number) in [("kim", 0), ("kim", number + 1), ("lee", number)] {
        let id = SpiffeId::admin(&west.trust_domain(), name);
        let channel = west.connect(Some(signed(&west, &id, number, HOUR, SystemTime::now()))).await.unwrap();
        for method in methods::all() {
            judge(&method, Role::Revoked, &call(&channel, &method.path).await);
        }
    }
}

fn agents() -> impl Iterator<Item = String> {
    AGENTS.iter().map(|name| {
        let (service, method) = name.rsplit_once('.').unwrap();
        format!("/isthmus.{service}/{method}")
    })
}

/// In TLS 1.3 a client hears of it when it connects, or with its first read.
async fn is_turned_away(west: &Cluster, identity: SharedIdentity, who: &str) {
    let Ok(channel) = west.connect(Some(identity)).await else { return };
    for method in methods::all() {
        let answer = call(&channel, &method.path).await.unwrap_err();
        let codes = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
        let broken = codes.contains(&answer.code());
        assert!(broken, "{who}: {}: {answer}", method.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_expired_revoked_or_of_an_unknown_root_does_not_pass_the_handshake() {
    let (mut west, north) = (Cluster::start("west").await, Cluster::start("north").await);
    let domain = west.trust_domain();
    let past = SystemTime::now() - 2 * HOUR;
    let expired = signed(&west, &SpiffeId::admin(&domain, "kim"), 0, HOUR, past);
    is_turned_away(&west, expired, "expired").await;
    is_turned_away(&west, north.running.app.ca.own().clone(), "a replica of a cluster that has not joined")
        .await;
    let node = west.node("n1").await;
    let mut authority = CertificateAuthorityClient::new(west.admin_channel.clone());
    authority.revoke_node(NodeRequest { name: node.name.clone() }).await.unwrap();
    let revoked = |state: &mesh_store::State| {
        state.cluster.as_ref().is_some_and(|cluster| !cluster.trust.revoked.is_empty())
    };
    common::until(&west, "it is revoked", revoked).await;
    // A list is answered once everything follows that state.
    west.revision().await;
    is_turned_away(&west, node.identity, "revoked").await;
}
