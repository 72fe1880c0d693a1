//! A pod, a node and a DNS server, each a network namespace. The node's packet filter hands the pod's queries to the
//! proxy, as the kernel programs do. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod network;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

use dns_proxy::{
    Event, Gate, GateError, Outcome, Peers, Rule, Rules, Seen, Sight,
    serve::{Listeners, Proxy},
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use mesh_model::policy::NamePattern;
use network::{Network, in_network};
use tokio::sync::{mpsc, oneshot, watch};

/// The identity of every server here.
const SERVER: u32 = 7;

/// A gate that a test opens, and what it saw.
#[derive(Clone)]
struct TestGate {
    asked: mpsc::UnboundedSender<(Seen, oneshot::Sender<Result<(), GateError>>)>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Gate for TestGate {
    async fn admit(&self, seen: &Seen) -> Result<(), GateError> {
        let (open, opened) = oneshot::channel();
        let _ = self.asked.send((seen.clone(), open));
        opened.await.unwrap_or(Err(GateError::Away))
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

struct TestSight {
    known: Vec<IpAddr>,
}

impl Sight for TestSight {
    fn identity(&self, _: IpAddr) -> u32 {
        SERVER
    }

    fn knows(&self, address: IpAddr) -> bool {
        self.known.contains(&address)
    }
}

/// What a test has in its hands.
struct Scene {
    network: Network,
    asked: mpsc::UnboundedReceiver<(Seen, oneshot::Sender<Result<(), GateError>>)>,
    events: Arc<Mutex<Vec<Event>>>,
    // Ends the proxy when dropped.
    _stop: oneshot::Sender<()>,
}

impl Scene {
    /// The proxy runs, and pods may ask for names below example.com.
    fn new(network: Network, known: Vec<IpAddr>) -> Self {
        let names = vec![NamePattern::parse("*.example.com").unwrap()];
        let peers = Peers::Identities([SERVER].into());
        let rule = Rule { peers, transport: None, ports: 53..=53, names: Some(names) };
        let rules: Arc<[Rule]> = Arc::from([rule]);
        let pods = network.pod_addresses().map(|pod| (pod, rules.clone()));
        let (_, rules) = watch::channel(Arc::new(Rules {
            pods: pods.into(),
            gated: vec![NamePattern::parse("*.example.com").unwrap()],
        }));
        let listeners = Listeners::bind().expect("root may");
        network.redirect_queries_to(listeners.port);
        let (ask, asked) = mpsc::unbounded_channel();
        let events = Arc::default();
        let gate = TestGate { asked: ask, events: Arc::clone(&events) };
        let (_stop, stopped) = oneshot::channel::<()>();
        let proxy = Proxy::new(gate, TestSight { known }, rules);
        tokio::spawn(proxy.serve(listeners, async {
            let _ = stopped.await;
        }));
        Self { network, asked, events, _stop }
    }

    /// What the gate was asked, and the means to open it.
    async fn held(&mut self) -> (Seen, oneshot::Sender<Result<(), GateError>>) {
        tokio::time::timeout(Duration::from_secs(10), self.asked.recv())
            .await
            .expect("in time")
            .expect("asked")
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.events.lock().unwrap().iter().map(|event| event.outcome).collect()
    }
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let message = Message::from_vec(answer).unwrap();
    assert_eq!(message.metadata.id, 4242);
    let address = |data: &RData| match data {
        RData::A(a) => IpAddr::from(a.0),
        other => panic!("{other:?}"),
    };
    message.answers.iter().map(|record| address(&record.data)).collect()
}

fn code(answer: &[u8]) -> ResponseCode {
    Message::from_vec(answer).unwrap().metadata.response_code
}

/// A connected socket: it takes answers only from the server that it asked.
fn client(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn ask_udp(server: SocketAddr, name: &str) -> Vec<u8> {
    let socket = client(server);
    socket.send(&query(name)).unwrap();
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

fn ask_tcp(stream: &mut TcpStream, name: &str) -> Vec<u8> {
    let query = query(name);
    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn an_answer_comes_from_the_server_that_was_asked_once_the_kernel_lets_its_addresses_through() {
    in_network(|network| async {
        let mut scene = Scene::new(network, vec![]);
        for server in scene.network.servers() {
            let (told, sent) = std::sync::mpsc::channel();
            let (look, looked) = std::sync::mpsc::channel();
            let pod = scene.network.in_pod(move || {
                let socket = client(server);
                socket.send(&query("www.example.com.")).unwrap();
                told.send(()).unwrap();
                let mut answer = vec![0; 4096];
                looked.recv().unwrap();
                socket.set_nonblocking(true).unwrap();
                let early = socket.recv(&mut answer).unwrap_err();
                assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
                socket.set_nonblocking(false).unwrap();
                told.send(()).unwrap();
                let length = socket.recv(&mut answer).unwrap();
                addresses(&answer[..length])
            });
            let (seen, open) = scene.held().await;
            assert_eq!(seen.name, "www.example.com");
            assert!(scene.network.pod_addresses().contains(&seen.pod));
            assert_eq!(seen.addresses, [(IpAddr::from([198, 51, 100, 1]), Duration::from_secs(30))]);
            sent.recv().unwrap();
            look.send(()).unwrap();
            sent.recv().unwrap();
            open.send(Ok(())).unwrap();
            let answered = tokio::task::spawn_blocking(|| pod.join().unwrap()).await.unwrap();
            assert_eq!(answered, [IpAddr::from([198, 51, 100, 1])]);
        }
        assert_eq!(scene.outcomes(), [Outcome::Answered; 2]);
    });
}

#[test]
fn a_connection_carries_several_questions() {
    in_network(|network| async {
        let mut scene = Scene::new(network, vec![]);
        for server in scene.network.servers() {
            let pod = scene.network.in_pod(move || {
                let mut stream = TcpStream::connect(server).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), server);
                let first = addresses(&ask_tcp(&mut stream, "www.example.com."));
                let refused = code(&ask_tcp(&mut stream, "www.example.net."));
                let second = addresses(&ask_tcp(&mut stream, "two.example.com."));
                (first.len(), refused, second.len())
            });
            for _ in 0..2 {
                scene.held().await.1.send(Ok(())).unwrap();
            }
            let answered = tokio::task::spawn_blocking(|| pod.join().unwrap()).await.unwrap();
            assert_eq!(answered, (1, ResponseCode::Refused, 2));
        }
    });
}

#[test]
fn what_no_policy_lets_a_pod_ask_for_never_reaches_the_server() {
    in_network(|network| async {
        let scene = Scene::new(network, vec![]);
        for server in scene.network.servers() {
            let pod = scene.network.in_pod(move || code(&ask_udp(server, "www.example.net.")));
            let answered = tokio::task::spawn_blocking(|| pod.join().unwrap()).await.unwrap();
            assert_eq!(answered, ResponseCode::Refused);
        }
        assert_eq!(scene.outcomes(), [Outcome::Refused; 2]);
        assert_eq!(scene.network.queries_that_reached_servers(), 0);
    });
}

#[test]
fn while_the_agent_is_away_a_pod_is_told_only_addresses_that_the_kernel_knows() {
    in_network(|network| async {
        let known = IpAddr::from([198, 51, 100, 2]);
        let mut scene = Scene::new(network, vec![known]);
        let [server, _] = scene.network.servers();
        let pod = scene.network.in_pod(move || {
            let some = addresses(&ask_udp(server, "two.example.com."));
            (some, code(&ask_udp(server, "www.example.com.")))
        });
        for _ in 0..2 {
            scene.held().await.1.send(Err(GateError::Away)).unwrap();
        }
        let (some, none) = tokio::task::spawn_blocking(|| pod.join().unwrap()).await.unwrap();
        assert_eq!((some, none), (vec![known], ResponseCode::ServFail));
        assert_eq!(scene.outcomes(), [Outcome::Shortened, Outcome::Held]);
    });
}

#[test]
fn garbage_is_answered_or_left_and_the_proxy_goes_on() {
    in_network(|network| async {
        let mut scene = Scene::new(network, vec![]);
        let [server, _] = scene.network.servers();
        let pod = scene.network.in_pod(move || {
            let socket = client(server);
            for garbage in [vec![], vec![0; 5], vec![0xff; 4096], vec![7; 9000]] {
                // (Longer than a query may be: not even looked at.)
                socket.send(&garbage).unwrap();
            }
            let mut cut = query("www.example.com.");
            cut.truncate(20);
            socket.send(&cut).unwrap();
            let mut answer = vec![0; 4096];
            let length = socket.recv(&mut answer).unwrap();
            let format = code(&answer[..length]);
            let mut stream = TcpStream::connect(server).unwrap();
            stream.write_all(&[0xff, 0xff, 1]).unwrap();
            let ended = stream.read(&mut answer).map_or(0, |length| length);
            (format, ended, addresses(&ask_udp(server, "www.example.com.")).len())
        });
        scene.held().await.1.send(Ok(())).unwrap();
        let answered = tokio::task::spawn_blocking(|| pod.join().unwrap()).await.unwrap();
        assert_eq!(answered, (ResponseCode::FormErr, 0, 1));
    });
}
