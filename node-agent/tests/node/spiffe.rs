//! The SPIFFE Workload API as its callers see it: each a process of its own, because attestation looks at processes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use mesh_tls::{CertificateDer, Identity, PrivateKeyDer, certified, peer_spiffe_id};
use tonic::{Request, Status, transport::Channel};
use xds_proto::spiffe::{
    JwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};

use crate::{
    Host,
    control_plane::{State, eventually},
    name,
};

/// Set for the process that plays a client.
const SOCKET: &str = "ISTHMUS_TEST_SPIFFE_SOCKET";
/// How many certificates it waits for.
const COUNT: &str = "ISTHMUS_TEST_SPIFFE_COUNT";

/// A program in a cgroup from its first moment on.
pub fn in_cgroup(dir: &Path, program: &Path) -> Command {
    let mut command = Command::new("sh");
    let enter = "echo 0 > \"$0/cgroup.procs\" && exec \"$@\"";
    command.args(["-c", enter]).arg(dir).arg(program);
    command
}

fn client(host: &Host<'_>, mut command: Command, count: u32) -> Command {
    command
        .args(["--exact", "spiffe::plays_a_client", "--ignored", "--nocapture"])
        .env(SOCKET, host.dir.join("spiffe.sock"))
        .env(COUNT, count.to_string());
    command
}

fn in_pod(pod: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name(pod)]).arg(myself());
    command
}

fn myself() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().filter_map(|line| line.strip_prefix("client: ")).collect::<Vec<_>>().join("; ")
}

fn asks(host: &Host<'_>, command: Command) -> String {
    said(&client(host, command, 1).output().unwrap().stdout)
}

pub fn certificates_are_whose_they_are(host: &Host<'_>, state: &Arc<State>) {
    let refused = "svid PermissionDenied; bundles PermissionDenied; bare InvalidArgument; jwt Unimplemented";
    let given = |id: &str| {
        format!("bundles spiffe://west.example; bare InvalidArgument; jwt Unimplemented; svid {id}")
    };
    // Each pod its own, by root and by others.
    for pod in ["pay", "web"] {
        let id = format!("spiffe://west.example/ns/shop/sa/{pod}");
        assert!(asks(host, in_pod(pod)).starts_with(&given(&id)));
    }
    let mut nobody = Command::new("ip");
    nobody.args(["netns", "exec", &name("pay"), "setpriv", "--reuid=65534", "--clear-groups"]).arg(myself());
    assert!(asks(host, nobody).contains("svid spiffe://west.example/ns/shop/sa/pay"));
    // A namespace that is no pod, and processes of the node that are no gateway, have none: not even root.
    assert_eq!(asks(host, in_pod("stranger")), refused);
    assert_eq!(asks(host, Command::new(myself())), refused);
    assert_eq!(asks(host, in_cgroup(&host.sandbox.cgroup, &myself())), refused);
    // Which gateway it is, its cgroup says; inside a pod it says nothing.
    let gateway = in_cgroup(&host.gateway_cgroup(), &myself());
    assert!(asks(host, gateway).starts_with(&given("spiffe://west.example/ns/mesh/sa/gw")));
    let mut inside = in_cgroup(&host.gateway_cgroup(), Path::new("ip"));
    inside.args(["netns", "exec", &name("web")]).arg(myself());
    assert!(asks(host, inside).starts_with(&given("spiffe://west.example/ns/shop/sa/web")));

    // A stream stands while the certificate is replaced, and gets the new one.
    let mut waiting = client(host, in_pod("pay"), 2);
    let mut waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    eventually("a certificate is replaced", || {
        // Whatever it has, another root is wanted from now on.
        state.activate(&"0".repeat(64));
        waiting.try_wait().unwrap()
    });
    state.activate("");
    let output = waiting.wait_with_output().unwrap();
    let text = said(&output.stdout);
    let serials: Vec<_> = text.split("; ").filter_map(|line| line.split_once("serial ")).collect();
    assert!(serials.len() == 2 && serials[0].1 != serials[1].1, "{text}");
}

#[test]
#[ignore = "run by the other test, in the place of a workload"]
fn plays_a_client() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let count: u32 = std::env::var(COUNT).unwrap().parse().unwrap();
    mesh_tls::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = mesh_tls::grpc::connect_unix(Path::new(&socket)).await.unwrap();
        let mut client = SpiffeWorkloadApiClient::new(channel);
        println!();
        let mut svids = match client.fetch_x509svid(with_header(X509svidRequest {})).await {
            Ok(response) => Some(response.into_inner()),
            Err(status) => {
                println!("client: svid {:?}", status.code());
                None
            }
        };
        match bundles(&mut client).await {
            Ok(domains) => println!("client: bundles {domains}"),
            Err(status) => println!("client: bundles {:?}", status.code()),
        }
        let bare = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
        println!("client: bare {:?}", bare.code());
        let jwt = JwtsvidRequest { audience: vec!["a".into()], ..Default::default() };
        let jwt = client.fetch_jwtsvid(with_header(jwt)).await.unwrap_err();
        println!("client: jwt {:?}", jwt.code());
        let Some(svids) = &mut svids else { return };
        for _ in 0..count {
            println!("client: svid {}", describe(svids.message().await.unwrap().unwrap()));
        }
    });
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn bundles(client: &mut SpiffeWorkloadApiClient<Channel>) -> Result<String, Status> {
    let mut stream = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await?.into_inner();
    let bundles = stream.message().await?.expect("the stream is open").bundles;
    Ok(bundles.into_keys().collect::<Vec<_>>().join(","))
}

/// Whose it is and its number, after everything in it was looked at.
fn describe(response: X509svidResponse) -> String {
    let [svid] = &response.svids[..] else { panic!("{response:?}") };
    let chain = certificates(&svid.x509_svid);
    let roots = certificates(&svid.bundle);
    assert_eq!(peer_spiffe_id(&chain).unwrap().to_string(), svid.spiffe_id);
    assert!(mesh_tls::root_of(&chain, &roots).is_some(), "the bundle verifies the chain");
    let key = PrivateKeyDer::try_from(svid.x509_svid_key.clone()).unwrap();
    let leaf = chain[0].clone();
    certified(Identity { chain, key }).expect("the key is the certificate's");
    let serial = mesh_tls::fingerprint(&leaf).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{} serial {serial}", svid.spiffe_id)
}

/// DER, one after the other: each says how long it is (X.690, 8.1.3).
fn certificates(mut bytes: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..2], [0x30, 0x82], "a sequence of 256 to 65535 bytes");
        let (one, rest) = bytes.split_at(4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
        all.push(CertificateDer::from(one.to_vec()));
        bytes = rest;
    }
    all
}
