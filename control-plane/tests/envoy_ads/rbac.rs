//! A NetworkPolicy in front of a workload whose sidecar is all that enforces it: the real Envoy, and our proxy, in a
//! whole control plane. Callers speak mesh mTLS with the certificates that their node's agent gives them, from the
//! addresses of their pods.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_HTTP11, ClientConfig, Identity, PeerPolicy, certified, client_config, grpc, shared_identity,
};
use proxy::{Options, Proxy, config::Secret};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt as _;
use xds_proto::{
    Message,
    envoy::{
        config::core::v3::Node,
        extensions::transport_sockets::tls::v3::Secret as WireSecret,
        service::{
            discovery::v3::DiscoveryRequest,
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    type_url,
};

use crate::{
    agent::{Agent, PODS},
    common::{self, Cluster},
    envoy::{self, Api, Backend, Envoy, PROMPT, eventually},
};

/// `app` label and service account. `api` and `job` are one account, which a policy can tell apart and a SPIFFE ID
/// can't.
const WORKLOADS: [(&str, &str); 5] =
    [("pay", "pay"), ("web", "web"), ("batch", "batch"), ("api", "shared"), ("job", "shared")];
const SNI: &str = "80.pay.shop.svc.mesh.local";

enum Plane {
    Envoy(Envoy),
    Proxy(Proxy),
}

impl Plane {
    fn log(&self) -> String {
        match self {
            Self::Envoy(envoy) => envoy.log(),
            Self::Proxy(proxy) => proxy.shared().stats.prometheus().unwrap_or_default(),
        }
    }
}

struct Shop {
    cluster: Cluster,
    agent: Agent,
    plane: Plane,
    pay: SocketAddr,
    _app: Backend,
}

/// Who calls, and from where.
struct Caller {
    tls: Arc<ClientConfig>,
    from: IpAddr,
    to: SocketAddr,
}

impl Caller {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        let stream = socket.connect(self.to).await?;
        TlsConnector::from(self.tls.clone()).connect(SNI.try_into().unwrap(), stream).await
    }

    /// Whether a request on a new connection is answered.
    async fn succeeds(&self) -> bool {
        match self.connect().await {
            Ok(mut stream) => ask(&mut stream).await.is_ok(),
            Err(_) => false,
        }
    }
}

/// One request and its answer: an error if the connection ends instead.
async fn ask(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let asking = async {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: pay.shop\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&answer).into_owned();
        let mut body = [0; 3];
        if !head.starts_with("HTTP/1.1 200") || stream.read_exact(&mut body).await? != 3 || body != *b"app" {
            return Err(io::Error::other(head));
        }
        Ok(())
    };
    tokio::time::timeout(PROMPT, asking).await?
}

impl Shop {
    /// None for `api`: our proxy.
    async fn start(api: Option<Api>) -> Option<Self> {
        let binary = match api {
            Some(api) => Some((envoy::binary()?, api)),
            None => None,
        };
        let mut cluster = Cluster::start_with("west", &PODS).await;
        let token = cluster.token("node").await;
        let names = WORKLOADS.map(|(app, _)| format!("shop/{app}"));
        let agent = Agent::start(&token, "n1", Vec::new(), &names.each_ref().map(String::as_str)).await;
        // The application has its port on loopback, and the sidecar has the same one on the pod's address.
        let app = Backend::start("app").await;
        let workload = |(name, account): (&str, &str)| {
            let (proxy, port) = match name {
                "pay" => ("sidecar", format!("{{name: http, port: {}}}", app.port)),
                _ => ("none", String::new()),
            };
            format!(
                "{{apiVersion: isthmus.io/v1, kind: Workload, \
                  metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}, \
                  spec: {{serviceAccount: {account}, proxy: {proxy}, ports: [{port}]}}}}"
            )
        };
        let service = "{apiVersion: v1, kind: Service, metadata: {name: pay, namespace: shop}, spec: {\
             selector: {app: pay}, ports: [{port: 80, targetPort: http, appProtocol: http}]}}";
        let yaml: Vec<String> = WORKLOADS.into_iter().map(workload).chain([service.to_owned()]).collect();
        cluster.apply(&yaml.join("\n---\n")).await.unwrap();
        for (number, name) in names.iter().enumerate() {
            agent.bind(name, host(number)).await;
        }
        let plane = match binary {
            Some((binary, api)) => Plane::Envoy(Envoy::start_at(&binary, api, "shop/pay", &agent.socket)),
            None => Plane::Proxy(
                Proxy::start(Options {
                    agent_socket: agent.socket.clone(),
                    node_id: "proxy~shop/pay".to_owned(),
                    cluster: "west".to_owned(),
                    admin: None,
                    ready_file: None,
                    access_log: false,
                })
                .await
                .unwrap(),
            ),
        };
        let pay = SocketAddr::new(agent.address(host(0)), app.port);
        Some(Self { cluster, agent, plane, pay, _app: app })
    }

    /// A workload with the certificate of its own, at its own address.
    async fn caller(&self, app: &str) -> Caller {
        let channel = grpc::connect_unix(&self.agent.socket).await.unwrap();
        let request = DiscoveryRequest {
            node: Some(Node { id: format!("envoy~shop/{app}"), ..Default::default() }),
            type_url: type_url::<WireSecret>(),
            resource_names: vec!["default".to_owned()],
            ..Default::default()
        };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let mut answers = client.stream_secrets(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let wire = WireSecret::decode(answer.resources[0].value.as_slice()).unwrap();
        let Secret::Certificate(own) = proxy::config::secret(wire).unwrap() else { panic!("no certificate") };
        let identity = certified(Identity { chain: own.chain, key: own.key }).unwrap();
        let pay = SpiffeId::workload(&TrustDomain::parse("west.example").unwrap(), "shop", "pay");
        let only_pay = PeerPolicy::OneOf([pay].into_iter().collect());
        let identity = Some(shared_identity(Some(identity)));
        let tls = client_config(identity, self.cluster.bundles(), only_pay, &[ALPN_HTTP11]).unwrap();
        let number = WORKLOADS.iter().position(|(name, _)| *name == app).unwrap();
        Caller { tls, from: self.agent.address(host(number)), to: self.pay }
    }

    /// Applies a policy for pay that lets in these, and waits for the ACK.
    async fn let_in(&mut self, apps: &[&str]) {
        let from: Vec<String> =
            apps.iter().map(|app| format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}")).collect();
        let policy = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
              metadata: {{name: callers, namespace: shop}}, \
              spec: {{podSelector: {{matchLabels: {{app: pay}}}}, ingress: [{{from: [{}]}}]}}}}",
            from.join(", ")
        );
        self.cluster.apply(&policy).await.unwrap();
        self.acked().await;
    }

    async fn acked(&self) {
        let app = &self.cluster.running.app;
        let lagging = crate::real::lagging(app).await;
        assert!(lagging.is_empty(), "{lagging:?}\n{}", self.plane.log());
        assert!(app.subscribers.list().iter().all(|client| client.nacks == 0), "{}", self.plane.log());
    }

    /// An ACK may come a moment before the last of the threads that serve has the new listener.
    async fn until(&self, caller: &Caller, lets_in: bool, what: &str) {
        let found = eventually(|| async { (caller.succeeds().await == lets_in).then_some(()) }).await;
        assert!(found.is_some(), "{what}\n{}", self.plane.log());
    }
}

fn host(number: usize) -> u8 {
    20 + number as u8
}

async fn story(api: Option<Api>) {
    let _ports = common::proxy_ports();
    let Some(mut shop) = Shop::start(api).await else { return };
    let (web, batch) = (shop.caller("web").await, shop.caller("batch").await);
    let (api, job) = (shop.caller("api").await, shop.caller("job").await);
    for (caller, name) in [(&web, "web"), (&batch, "batch"), (&api, "api"), (&job, "job")] {
        shop.until(caller, true, &format!("without a policy {name} may call")).await;
    }

    shop.let_in(&["web"]).await;
    for (caller, name) in [(&batch, "batch"), (&api, "api"), (&job, "job")] {
        shop.until(caller, false, &format!("{name} is kept out")).await;
    }
    assert!(web.succeeds().await, "web may call\n{}", shop.plane.log());
    let mut kept = web.connect().await.unwrap();
    ask(&mut kept).await.unwrap();

    // Some of an account's workloads: the certificate is not enough, and neither is the address.
    shop.let_in(&["web", "api"]).await;
    shop.until(&api, true, "api may call").await;
    assert!(!job.succeeds().await, "job has the same SPIFFE ID, and may not\n{}", shop.plane.log());
    let elsewhere = Caller { tls: api.tls.clone(), from: job.from, to: api.to };
    assert!(!elsewhere.succeeds().await, "the certificate of api comes from somewhere else");
    let somebody = Caller { tls: batch.tls.clone(), from: api.from, to: api.to };
    assert!(!somebody.succeeds().await, "somebody else is at the address of api");
    ask(&mut kept).await.expect("a connection that stands and is permitted is served on");

    shop.let_in(&["batch"]).await;
    shop.until(&web, false, "web is kept out").await;
    assert!(batch.succeeds().await && !api.succeeds().await);
    match &shop.plane {
        Plane::Envoy(envoy) => {
            let stats = envoy.admin("/stats?filter=rbac").await;
            let denied = "networkpolicy/shop/callers#default-deny-ingress.rbac.denied: ";
            let count = stats.lines().find_map(|line| line.split_once(denied)?.1.parse::<u64>().ok());
            assert!(count.is_some_and(|count| count > 0), "{stats}");
            let dump = envoy.admin("/config_dump?resource=dynamic_listeners").await;
            assert!(dump.contains("networkpolicy/shop/callers#ingress[0]"), "{dump}");
        }
        Plane::Proxy(proxy) => {
            let page = proxy.shared().stats.prometheus().unwrap();
            let denied = "policy=\"networkpolicy/shop/callers#default-deny-ingress\"";
            assert!(
                page.lines().any(|line| line.contains("rbac_denied_total") && line.contains(denied)),
                "{page}"
            );
            assert!(ask(&mut kept).await.is_err(), "a connection that is not permitted any more is closed");
        }
    }

    shop.cluster.delete("networkpolicy", "shop", "callers").await;
    for (caller, name) in [(&web, "web"), (&batch, "batch"), (&api, "api"), (&job, "job")] {
        shop.until(caller, true, &format!("without a policy {name} may call again")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_enforces_a_network_policy_by_state_of_the_world() {
    story(Some(Api::Sotw)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_enforces_a_network_policy_by_delta() {
    story(Some(Api::Delta)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_proxy_enforces_a_network_policy() {
    story(None).await;
}
