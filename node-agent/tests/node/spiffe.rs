//! The SPIFFE Workload API as its callers see it: each a process of its own, because attestation looks at processes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_model::identity::SpiffeId;
use mesh_tls::{
    CertificateDer, Identity, PrivateKeyDer, certified,
    jwt::{self, JwtKey},
    peer_spiffe_id,
};
use tonic::{Code, Request, Status, transport::Channel};
use xds_proto::spiffe::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest,
    X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
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
    tokens_that_are_none(host, state);
    let refused = "svid PermissionDenied; bundles PermissionDenied; bare InvalidArgument; \
                   jwt PermissionDenied PermissionDenied PermissionDenied";
    let given =
        |id: &str| format!("bundles spiffe://west.example; bare InvalidArgument; jwt {id}; svid {id}");
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
    for name in ["foreign", "expired"] {
        std::fs::remove_file(host.dir.join(format!("{name}.jwt"))).unwrap();
    }
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
        match svids {
            Some(_) => println!("client: jwt {}", tokens(&mut client, Path::new(&socket)).await),
            None => println!("client: jwt {}", no_tokens(&mut client).await),
        }
        let Some(svids) = &mut svids else { return };
        for _ in 0..count {
            println!("client: svid {}", describe(svids.message().await.unwrap().unwrap()));
        }
    });
}

/// Tokens of the workload `pay`, as files beside the socket: signed by a key that nobody has told of, and past its time.
fn tokens_that_are_none(host: &Host<'_>, state: &Arc<State>) {
    let id = SpiffeId::parse("spiffe://west.example/ns/shop/sa/pay").unwrap();
    let signed = |key: &JwtKey, now| key.sign(&id, &["bank"], 60, now).unwrap().0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let foreign = signed(&JwtKey::generate().unwrap(), now);
    for (name, token) in [("foreign", foreign), ("expired", signed(&state.jwt_key, now - 3_600))] {
        std::fs::write(host.dir.join(format!("{name}.jwt")), token).unwrap();
    }
}

/// What somebody is answered who is no workload.
async fn no_tokens(client: &mut SpiffeWorkloadApiClient<Channel>) -> String {
    let request = JwtsvidRequest { audience: vec!["bank".into()], ..Default::default() };
    let svid = client.fetch_jwtsvid(with_header(request)).await.unwrap_err();
    let bundles = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap_err();
    let valid = validated(client, "bank", "x").await.unwrap_err();
    format!("{:?} {:?} {:?}", svid.code(), bundles.code(), valid.code())
}

/// Whose token the caller is given, after everything about it was looked at.
async fn tokens(client: &mut SpiffeWorkloadApiClient<Channel>, socket: &Path) -> String {
    let fetch = |audience: &[&str], spiffe_id: &str| {
        let audience = audience.iter().map(|&text| text.to_owned()).collect();
        with_header(JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() })
    };
    let given = client.fetch_jwtsvid(fetch(&["bank", "shop"], "")).await.unwrap().into_inner();
    let [svid] = &given.svids[..] else { panic!("{given:?}") };
    let again = client.fetch_jwtsvid(fetch(&["bank", "shop"], &svid.spiffe_id)).await.unwrap().into_inner();
    assert_eq!(again, given, "the same while it is young");
    let stranger = "spiffe://west.example/ns/shop/sa/nobody";
    for (request, code) in [
        (fetch(&["bank"], stranger), Code::PermissionDenied),
        (fetch(&[], ""), Code::InvalidArgument),
        (fetch(&["a b"], ""), Code::InvalidArgument),
        (fetch(&["a"; jwt::MAX_AUDIENCES + 1], ""), Code::InvalidArgument),
    ] {
        assert_eq!(client.fetch_jwtsvid(request).await.unwrap_err().code(), code);
    }

    let valid = validated(client, "bank", &svid.svid).await.unwrap();
    assert_eq!(valid.spiffe_id, svid.spiffe_id);
    let claims = valid.claims.unwrap().fields;
    assert!(claims.contains_key("exp") && claims.contains_key("aud"), "{claims:?}");
    let token = |name: &str| std::fs::read_to_string(socket.with_file_name(format!("{name}.jwt"))).unwrap();
    for (audience, token, words) in [
        ("other", svid.svid.clone(), "not meant for"),
        ("bank", token("expired"), "expired"),
        ("bank", token("foreign"), "its key"),
        ("", svid.svid.clone(), "audience"),
        ("bank", "x".repeat(jwt::MAX_TOKEN + 1), "more than"),
    ] {
        let refused = validated(client, audience, &token).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(words), "{refused:?}");
    }

    // And by the keys alone, as somebody does who has no agent.
    let mut bundles = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let told = bundles.message().await.unwrap().unwrap().bundles;
    let keys: serde_json::Value = serde_json::from_slice(&told["spiffe://west.example"]).unwrap();
    let [key] = &keys["keys"].as_array().unwrap()[..] else { panic!("{keys}") };
    assert!(key["kty"] == "EC" && key["crv"] == "P-256" && key.get("d").is_none(), "{key}");
    svid.spiffe_id.clone()
}

async fn validated(
    client: &mut SpiffeWorkloadApiClient<Channel>,
    audience: &str,
    svid: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
    Ok(client.validate_jwtsvid(with_header(request)).await?.into_inner())
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
