//! Writes the seeds of each corpus: `cargo run -p bad-input --example seeds`. What the fuzzer adds stays.

use std::{fs, io::Write, path::Path};

use clustermesh::{
    manifest,
    token::{JoinToken, Purpose},
};
use mesh_model::{identity::TrustDomain, records::ClusterInfo, resource::Object};
use mesh_store::{
    Bytes16, Command, Envelope, State, apply,
    container::{Kind, Writer},
};
use serde_json::{Value, json};
use xds_proto::{
    Message,
    envoy::{
        config::{
            core::v3::{Locality, Node},
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::{
            discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
            load_stats::v3::LoadStatsRequest,
            status::v3::ClientStatusRequest,
        },
        r#type::matcher::v3::{
            ListMatcher, NodeMatcher, OrMatcher, RegexMatcher, StringMatcher, StructMatcher, ValueMatcher,
            list_matcher, string_matcher,
            struct_matcher::{PathSegment, path_segment::Segment},
            value_matcher::MatchPattern,
        },
    },
    google::protobuf::{ListValue, Struct, Value as Field, value},
    isthmus::raft::v1::Payload,
};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

fn main() -> std::io::Result<()> {
    objects()?;
    xds()?;
    csds()?;
    load()?;
    raft()?;
    snapshot()?;
    backup()?;
    token()
}

fn save(target: &str, name: &str, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

fn objects() -> std::io::Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for entry in fs::read_dir(examples)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            save("objects", &entry.file_name().to_string_lossy(), fs::read(entry.path())?)?;
        }
    }
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f")] {
        laughs.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(", ")));
    }
    save("objects", "laughs.yaml", laughs)?;
    save("objects", "itself.yaml", "a: &a [*a, *a]\n")?;
    save("objects", "merge.yaml", "a: &a {b: 1}\nc: {<<: [*a, *a, *a], <<: *a}\n")?;
    save("objects", "deep.yaml", format!("a: {}", "[".repeat(5_000)))?;
    save("objects", "deep.json", format!("{{\"a\": {}", "[".repeat(5_000)))?;
    save("objects", "indented.yaml", (0..200).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>())?;
    save(
        "objects",
        "scope.yaml",
        "apiVersion: networking.istio.io/v1beta1\nkind: Sidecar\nmetadata: {name: a, namespace: b}\nspec: {workloadSelector: {labels: {a: b}}, egress: [{hosts: [./*, \"*/*.c.d\", ~/*, /, \"*/\"]}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {networking.istio.io/exportTo: \"., *,~,\"}}\nspec: {ports: [{port: 1}]}\n",
    )?;
    save("objects", "many.json", "{}".repeat(20_000))?;
    save("objects", "markers.yaml", "---\n".repeat(5_000))?;
    save(
        "objects",
        "numbers.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{port: 99999999999999999999}, {port: -1}, {port: 0x7fffffffffffffff}, {port: .inf}]}\n",
    )?;
    save(
        "objects",
        "list.json",
        "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"a\",\"namespace\":\"b\"},\"spec\":{\"ports\":[{\"port\":1}]}}]}",
    )?;
    save(
        "objects",
        "regex.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a, namespace: b}\nspec:\n  parentRefs: [{kind: Service, group: '', name: a, port: 1}]\n  rules: [{matches: [{path: {type: RegularExpression, value: '(((a{900}){900}){900}){900}'}}], backendRefs: [{name: a, port: 1}]}]\n",
    )
}

/// A step of [`control_plane::xds::session::fuzz::play`].
fn step(kind: u8, contents: &[u8]) -> Vec<u8> {
    let length = u8::try_from(contents.len()).expect("a small message");
    [&[kind, length], contents].concat()
}

fn sotw(kind: u8, type_url: &str, names: &[&str], nonce: &str) -> Vec<u8> {
    let request = DiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    };
    step(kind, &request.encode_to_vec())
}

fn delta(kind: u8, type_url: &str, subscribe: &[&str], unsubscribe: &[&str]) -> Vec<u8> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let request = DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..Default::default()
    };
    step(kind, &request.encode_to_vec())
}

fn xds() -> std::io::Result<()> {
    let steps = |protocol: u8, steps: &[Vec<u8>]| [&[protocol], steps.concat().as_slice()].concat();
    // A cluster, its endpoints and a listener appear; one goes.
    let change = || step(2, &[32, 33, 34, 40, 1]);
    let passed = || step(3, &[60]);
    save(
        "xds",
        "sotw",
        steps(
            0,
            &[
                sotw(0, CLUSTER, &[], ""),
                change(),
                sotw(1, CLUSTER, &[], ""),
                sotw(0, ENDPOINT, &["r/0", "nobody"], ""),
                sotw(1, ENDPOINT, &["r/0"], ""),
                passed(),
            ],
        ),
    )?;
    let stale = sotw(0, LISTENER, &["*", "r/0"], "stale");
    save("xds", "sotw-stale", steps(0, &[change(), stale.clone(), sotw(1, LISTENER, &["*"], ""), stale]))?;
    save(
        "xds",
        "delta",
        steps(
            1,
            &[
                delta(0, CLUSTER, &["*", "x"], &[]),
                change(),
                delta(1, CLUSTER, &[], &[]),
                delta(0, CLUSTER, &["r/0"], &["*", "x"]),
                passed(),
                delta(1, CLUSTER, &[], &[]),
            ],
        ),
    )?;
    let unknown = delta(0, "type.googleapis.com/nobody", &["a"], &["b"]);
    save("xds", "delta-unknown", steps(3, &[unknown, delta(1, "", &[], &[])]))?;
    save("xds", "long-name", steps(0, &[sotw(0, CLUSTER, &["x".repeat(150).as_str()], "")]))
}

fn by_id(pattern: string_matcher::MatchPattern) -> NodeMatcher {
    let node_id = Some(StringMatcher { match_pattern: Some(pattern), ignore_case: true });
    NodeMatcher { node_id, ..Default::default() }
}

fn by_regex(regex: &str) -> NodeMatcher {
    let regex = RegexMatcher { regex: regex.to_owned(), ..Default::default() };
    by_id(string_matcher::MatchPattern::SafeRegex(regex))
}

fn by_metadata(value: MatchPattern) -> NodeMatcher {
    let segment = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    let matcher = StructMatcher {
        path: vec![segment("labels"), segment("list")],
        value: Some(ValueMatcher { match_pattern: Some(value) }),
    };
    NodeMatcher { node_metadatas: vec![matcher], ..Default::default() }
}

fn csds() -> std::io::Result<()> {
    let field = |kind| Field { kind: Some(kind) };
    let list = field(value::Kind::ListValue(ListValue {
        values: vec![field(value::Kind::BoolValue(true)), field(value::Kind::NumberValue(7.0))],
    }));
    let labels = field(value::Kind::StructValue(Struct { fields: [("list".to_owned(), list)].into() }));
    let node = Node {
        id: "sidecar~7".to_owned(),
        metadata: Some(Struct { fields: [("labels".to_owned(), labels)].into() }),
        ..Default::default()
    };
    let ask = |name: &str, node_matchers: Vec<NodeMatcher>| {
        let node = Some(node.clone());
        save("csds", name, ClientStatusRequest { node_matchers, node, ..Default::default() }.encode_to_vec())
    };
    ask("everybody", Vec::new())?;
    let exact = |text: &str| by_id(string_matcher::MatchPattern::Exact(text.to_owned()));
    ask("names", vec![exact("other"), exact("SIDECAR~7"), exact("envoy~shop/web")])?;
    let number = |pattern| {
        MatchPattern::DoubleMatch(xds_proto::envoy::r#type::matcher::v3::DoubleMatcher {
            match_pattern: Some(pattern),
        })
    };
    use xds_proto::envoy::r#type::{matcher::v3::double_matcher::MatchPattern as Number, v3::DoubleRange};
    let range = number(Number::Range(DoubleRange { start: f64::NEG_INFINITY, end: f64::NAN }));
    let one_of = |of: MatchPattern| {
        let of = list_matcher::MatchPattern::OneOf(Box::new(ValueMatcher { match_pattern: Some(of) }));
        MatchPattern::ListMatch(Box::new(ListMatcher { match_pattern: Some(of) }))
    };
    let values = [MatchPattern::BoolMatch(true), range, MatchPattern::PresentMatch(false)];
    let any = MatchPattern::OrMatch(OrMatcher {
        value_matchers: values.map(|of| ValueMatcher { match_pattern: Some(of) }).into(),
    });
    ask("metadata", vec![by_metadata(one_of(number(Number::Exact(7.0)))), by_metadata(one_of(any))])?;
    let deep = (0..20).fold(MatchPattern::PresentMatch(true), |inner, _| one_of(inner));
    ask("deep", vec![by_metadata(deep)])?;
    ask("regex", vec![by_regex("sidecar~[\\w-]+"), by_regex("(?:a|b)*c")])?;
    ask("regex-large", vec![by_regex("(((a{900}){900}){900}){900}")])?;
    ask("regex-many", vec![by_regex("\\w{4}"); 100])?;
    ask("empty", vec![NodeMatcher::default(); 101])
}

fn load() -> std::io::Result<()> {
    let at = |zone: &str, requests: u64| UpstreamLocalityStats {
        locality: Some(Locality { region: "eu".to_owned(), zone: zone.to_owned(), ..Default::default() }),
        total_successful_requests: requests,
        total_error_requests: 1,
        total_requests_in_progress: 2,
        ..Default::default()
    };
    let cluster = |name: &str, stats: Vec<UpstreamLocalityStats>, dropped: u64| ClusterStats {
        cluster_name: name.to_owned(),
        upstream_locality_stats: stats,
        total_dropped_requests: dropped,
        ..Default::default()
    };
    let report = |cluster_stats| LoadStatsRequest { cluster_stats, ..Default::default() };
    let write = |name: &str, reports: &[LoadStatsRequest]| {
        save(
            "load",
            name,
            reports.iter().flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<_>>(),
        )
    };
    let usual = report(vec![cluster("a", vec![at("x", 7), at("y", 0)], 3), cluster("b", vec![], 1)]);
    write("usual", &[usual.clone(), usual.clone(), usual.clone(), report(vec![]), usual])?;
    let most = report(vec![cluster("a", vec![at("x", u64::MAX), at("x", u64::MAX)], u64::MAX)]);
    write("extremes", &[most.clone(), most.clone(), most])?;
    let names = (0..600).map(|n| cluster(&n.to_string(), vec![at(&n.to_string(), n)], 0)).collect();
    write("many", &[report(names)])?;
    // Cut within a character.
    let long = format!("{}\u{e9}", "x".repeat(511));
    write("long-name", &[report(vec![cluster(&long, vec![at(&long, 1)], 0), cluster("", vec![], 9)])])?;
    // Many that are over when the last is looked at.
    write("window", &vec![report(vec![cluster("a", vec![at("x", 1)], 0)]); 60])?;
    save("load", "length", [0xff, 0xff, 0xff, 0xff, 0x0f, 0x0a])
}

fn raft() -> std::io::Result<()> {
    let payload = |json: serde_json::Value| {
        Payload { json: json.to_string().into_bytes(), ..Default::default() }.encode_to_vec()
    };
    let vote = json!({"leader_id": {"term": 1, "node_id": 1}, "committed": true});
    let id = json!({"leader_id": {"term": 1, "node_id": 1}, "index": 7});
    save("raft", "vote", payload(json!({"vote": vote, "last_log_id": id})))?;
    let entry = json!({"log_id": id, "payload": "Blank"});
    let append = json!({"vote": vote, "prev_log_id": id, "entries": [entry], "leader_commit": id});
    save("raft", "append", payload(append))?;
    save("raft", "forward", payload(json!({"envelopes": [], "patience_ms": u64::MAX})))?;
    let meta = json!({"last_log_id": id, "last_membership": {"log_id": null, "membership": {"configs": [[1]], "nodes": {"1": {"addr": "a:1"}}}}, "snapshot_id": "x"});
    save(
        "raft",
        "piece",
        payload(json!({"vote": vote, "meta": meta, "offset": u64::MAX, "data": "AAAA", "done": true})),
    )?;
    save(
        "raft",
        "deep",
        Payload { json: "[".repeat(10_000).into_bytes(), ..Default::default() }.encode_to_vec(),
    )?;
    // A field that claims more bytes than there are.
    save("raft", "length", [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, b'{'])?;
    save("raft", "answer", payload(json!({"Ok": 7})))
}

fn snapshot() -> std::io::Result<()> {
    let empty = mesh_store::encode(&State::default()).expect("plain data");
    save("snapshot", "empty", &empty)?;
    save("snapshot", "shop", mesh_store::encode(&shop()?).expect("plain data"))?;
    save("snapshot", "cut", &empty[..empty.len() / 2])?;
    save("snapshot", "newer", r#"{"format": 4000000000}"#)?;
    save("snapshot", "deep", format!("{{\"format\": 1, \"x\": {}", "[".repeat(10_000)))
}

fn backup() -> std::io::Result<()> {
    let state = shop()?;
    let bytes = mesh_store::encode(&state).expect("plain data");
    let write = |state: &State, at: u64| {
        mesh_store::backup::write(state, at, "0.1.0", Vec::new()).expect("a cluster")
    };
    let good = write(&state, 1_800_000_000);
    save("backup", "shop", &good)?;
    let mut last = state.clone();
    last.revision = u64::MAX;
    save("backup", "extremes", write(&last, u64::MAX))?;
    save("backup", "cut", &good[..good.len() - 21])?;
    let mut newer = good.clone();
    newer[8] = 200;
    save("backup", "newer", newer)?;
    // The header's length, header and content: what the target makes a file of.
    let whole = |header: Value, content: &[u8]| {
        let header = header.to_string();
        let length = u16::try_from(header.len()).expect("a small header").to_le_bytes();
        [&length[..], header.as_bytes(), content].concat()
    };
    let header =
        serde_json::to_value(mesh_store::backup::Header::of(&state, 7, "0.1.0").expect("a cluster"))?;
    save("backup", "parts", whole(header.clone(), &bytes))?;
    let mut other = header;
    other["revision"] = json!(u64::MAX);
    save("backup", "contradiction", whole(other, &bytes))?;
    let meta = json!({"last_log_id": null, "last_membership": {"log_id": null, "membership": {"configs": [[1]], "nodes": {"1": {"addr": "a:1"}}}}, "snapshot_id": "x"});
    save("backup", "snapshot-parts", whole(meta.clone(), &bytes))?;
    let kind = Kind { magic: *b"isthsnap", name: "snapshot" };
    let mut file = Writer::new(Vec::new(), kind, meta.to_string().as_bytes())?;
    file.write_all(&bytes)?;
    save("backup", "snapshot", file.finish()?.0)?;
    // A piece that claims more bytes than there are, behind a good header.
    let mut long = Writer::new(Vec::new(), mesh_store::backup::KIND, b"{}")?.finish()?.0;
    let at = long.len() - 20;
    long.truncate(at);
    long.extend(u32::MAX.to_le_bytes());
    save("backup", "length", long)
}

/// The shop of the examples, applied.
fn shop() -> std::io::Result<State> {
    let mut state = State::default();
    let mut run = |number: u128, command: Command| {
        let key = Bytes16(number.to_be_bytes());
        let made = apply(
            &mut state,
            &Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command },
        );
        assert!(made.outcome.is_ok(), "{:?}", made.outcome);
    };
    run(
        1,
        Command::Init(ClusterInfo {
            name: "west".to_owned(),
            trust_domain: TrustDomain::parse("west.example").expect("a name"),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().expect("a network"),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().expect("a network"),
            roots: vec![vec![1]],
            trust: Default::default(),
        }),
    );
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop-west.yaml"))?;
    let documents = manifest::parse("shop", &text).expect("an example");
    let objects = documents.iter().map(|document| Object::parse(&document.object).expect("an example"));
    run(2, Command::Apply { objects: objects.collect(), dry_run: false });
    Ok(state)
}

fn token() -> std::io::Result<()> {
    let token = JoinToken {
        purpose: Purpose::Node,
        node: Some("n1".to_owned()),
        cluster: "west".to_owned(),
        id: "abcdef0123456789".to_owned(),
        secret: [7; 32],
        doors: vec!["192.0.2.1:9443".to_owned()],
        root_sha256: [9; 32],
        expires_unix: 1_800_000_000,
    };
    let text = token.encode().expect("a whole token");
    save("token", "node", &text)?;
    save("token", "cut", &text[..text.len() - 3])?;
    save("token", "newer", text.replace("isthmus1", "isthmus2"))?;
    save("token", "long", format!("isthmus1.{}", "A".repeat(20_000)))?;
    save("token", "empty", "isthmus1.")
}
