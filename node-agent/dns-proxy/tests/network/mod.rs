//! Three network namespaces, and a server that answers for example.com in the third.

use std::{
    fs::File,
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use ebpf_shared::redirect::MARK;
use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, rdata::A},
};

use nix::sched::{CloneFlags, setns, unshare};

const POD: [&str; 2] = ["10.1.0.2", "fd00:1::2"];
const SERVER: [&str; 2] = ["192.0.2.53", "2001:db8::53"];

pub struct Network {
    pod: File,
    reached: Arc<AtomicUsize>,
}

/// Runs a test on a runtime whose threads are in the node's namespace. Says so and does nothing if
/// `SKIP_PRIVILEGED=1`.
pub fn in_network<F: Future<Output = ()>>(test: impl FnOnce(Network) -> F + Send + 'static) {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("needs root; set SKIP_PRIVILEGED=1 to do without these tests");
        let network = Network::make();
        // One thread: those that a runtime starts for others inherit its namespace too.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test(network));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Network {
    fn make() -> Self {
        run("ip link set lo up");
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let pod = neighbour("pod", ["10.1.0.1", "fd00:1::1"], POD);
        let server = neighbour("server", ["192.0.2.1", "2001:db8::1"], SERVER);
        let reached = Arc::new(AtomicUsize::new(0));
        let (ready, is_ready) = mpsc::channel();
        for address in SERVER {
            let at = SocketAddr::new(address.parse().expect("an address"), 53);
            for serve in [serve_udp as fn(SocketAddr, &AtomicUsize, &mpsc::Sender<()>), serve_tcp] {
                let (reached, ready) = (reached.clone(), ready.clone());
                // Ends with the test's process.
                within(&server, move || serve(at, &reached, &ready));
                is_ready.recv().expect("bound");
            }
        }
        Self { pod, reached }
    }

    pub fn pod_addresses(&self) -> [IpAddr; 2] {
        POD.map(|text| text.parse().expect("an address"))
    }

    pub fn servers(&self) -> [SocketAddr; 2] {
        SERVER.map(|text| SocketAddr::new(text.parse().expect("an address"), 53))
    }

    pub fn queries_that_reached_servers(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    pub fn in_pod<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        within(&self.pod, work)
    }

    /// Hands the pod's packets to port 53 to the sockets at this port, as the node's kernel programs do.
    pub fn redirect_queries_to(&self, port: u16) {
        for (version, everywhere) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            run(&format!("ip {version} rule add fwmark 1 lookup 100"));
            run(&format!("ip {version} route add local {everywhere} dev lo table 100"));
        }
        let rule = |family: &str, to: &str, at: String| {
            format!(
                "iifname pod meta nfproto {family} meta l4proto {{ tcp, udp }} th dport 53 \
                 tproxy {to} to {at} meta mark set 1 accept\n"
            )
        };
        let (v4, v6) =
            (rule("ipv4", "ip", format!("127.0.0.1:{port}")), rule("ipv6", "ip6", format!("[::1]:{port}")));
        let hook = "type filter hook prerouting priority mangle;";
        // Answers to what the proxy asks in the pod's name.
        let answers = format!(
            "iifname server meta l4proto {{ tcp, udp }} socket transparent 1 socket mark {MARK:#x} \
             meta mark set 1 accept\n"
        );
        let table = format!("table inet to_proxy {{\nchain prerouting {{\n{hook}\n{answers}{v4}{v6}}}\n}}\n");
        let status = Command::new("nft").arg(table).status().expect("nft");
        assert!(status.success(), "nft: {status}");
    }
}

/// A namespace behind a link of this name.
fn neighbour(name: &str, own: [&str; 2], its: [&str; 2]) -> File {
    let (tell, told) = mpsc::channel();
    let (finish, finished) = mpsc::channel::<()>();
    let gateways = own.map(str::to_owned);
    let addresses = its.map(str::to_owned);
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        tell.send(nix::unistd::gettid()).expect("waited for");
        finished.recv().expect("the link is there");
        run("ip link set lo up");
        run("ip link set eth0 up");
        run(&format!("ip addr add {}/24 dev eth0", addresses[0]));
        run(&format!("ip addr add {}/64 dev eth0 nodad", addresses[1]));
        run(&format!("ip route add default via {}", gateways[0]));
        run(&format!("ip -6 route add default via {}", gateways[1]));
        File::open("/proc/thread-self/ns/net").expect("proc is mounted")
    });
    let thread_id = told.recv().expect("told");
    run(&format!("ip link add {name} type veth peer name eth0 netns {thread_id}"));
    run(&format!("ip link set {name} up"));
    run(&format!("ip addr add {}/24 dev {name}", own[0]));
    run(&format!("ip addr add {}/64 dev {name} nodad", own[1]));
    finish.send(()).expect("waited for");
    thread.join().expect("the namespace is set up")
}

fn within<T: Send + 'static>(namespace: &File, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = namespace.try_clone().expect("a descriptor");
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
        work()
    })
}

fn serve_udp(at: SocketAddr, reached: &AtomicUsize, ready: &mpsc::Sender<()>) {
    let socket = UdpSocket::bind(at).expect("free");
    ready.send(()).expect("waited for");
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        assert!(is_pod(from), "{from} asks");
        reached.fetch_add(1, Ordering::SeqCst);
        let _ = socket.send_to(&answer(&buffer[..length]), from);
    }
}

fn serve_tcp(at: SocketAddr, reached: &AtomicUsize, ready: &mpsc::Sender<()>) {
    let listener = TcpListener::bind(at).expect("free");
    ready.send(()).expect("waited for");
    for mut stream in listener.incoming().flatten() {
        assert!(stream.peer_addr().is_ok_and(is_pod), "a stranger asks");
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut query).expect("a whole query");
            reached.fetch_add(1, Ordering::SeqCst);
            let answer = answer(&query);
            let length = u16::try_from(answer.len()).expect("short").to_be_bytes();
            stream.write_all(&[&length, answer.as_slice()].concat()).expect("taken");
        }
    }
}

/// Whom alone servers see.
fn is_pod(from: SocketAddr) -> bool {
    POD.iter().any(|pod| pod.parse() == Ok(from.ip()))
}

/// One address; two for names that begin with "two".
fn answer(query: &[u8]) -> Vec<u8> {
    let mut message = Message::from_vec(query).expect("the proxy sends queries");
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name().clone();
    let count = if name.to_ascii().starts_with("two") { 2 } else { 1 };
    for last in 1..=count {
        let address = RData::A(A([198, 51, 100, last].into()));
        message.add_answer(Record::from_rdata(name.clone(), 30, address));
    }
    message.to_vec().expect("short")
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().expect("a program")).args(words).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command}: {status:?}");
}
