//! Network namespaces with something in them: pods behind the programs, and other hosts.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::JoinHandle;

use ebpf_shared::Endpoint;
use nix::sched::{CloneFlags, setns, unshare};
use node_agent::kernel::Kernel;

use super::{run, speak_at_once};

/// Has this thread's network namespace forward packets.
pub fn forward() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("our own namespace");
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("our own namespace");
}

/// A network namespace, for as long as this lives.
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one, with its loopback interface up.
    pub fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            speak_at_once();
            run(&["ip", "link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("proc is mounted")
        });
        Self { file: thread.join().expect("made") }
    }

    /// Moves an interface of this thread's namespace there.
    pub fn take(&self, ifname: &str) {
        let (tell, told) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let inside = self.spawn(move || {
            tell.send(nix::unistd::gettid()).expect("waited for");
            // Until the link has been moved to where this thread is.
            let _ = finished.recv();
        });
        let thread = told.recv().expect("told").to_string();
        run(&["ip", "link", "set", ifname, "netns", &thread]);
        finish.send(()).expect("waited for");
        inside.join().expect("no panic");
    }

    /// Does something inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.file.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("root may");
            work()
        })
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().expect("no panic")
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Family {
    V4,
    V6,
}

pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// A pod: a network namespace, and the index of its interface in ours.
pub struct Pod {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub netns: Netns,
    pub ifindex: u32,
}

impl Pod {
    /// Makes a pod with 10.1.0.`number` and fd00:1::`number`, guarded before its link is up.
    pub fn new(kernel: &mut Kernel, number: u8) -> Self {
        Self::with(number, |host| kernel.attach_pod(host).expect("attachable"))
    }

    /// The same without programs.
    pub fn unguarded(number: u8) -> Self {
        Self::with(number, |host| nix::net::if_::if_nametoindex(host).expect("there"))
    }

    fn with(number: u8, guard: impl FnOnce(&str) -> u32) -> Self {
        let v4 = Ipv4Addr::new(10, 1, 0, number);
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number.into());
        let (host, inside) = (format!("host{number}"), format!("pod{number}"));
        run(&["ip", "link", "add", &host, "type", "veth", "peer", "name", &inside]);
        let ifindex = guard(&host);
        let mac = mac_of(&host);

        let netns = Netns::new();
        netns.take(&inside);
        run(&["ip", "link", "set", &host, "up"]);
        run(&["ip", "route", "add", &format!("{v4}/32"), "dev", &host]);
        run(&["ip", "-6", "route", "add", &format!("{v6}/128"), "dev", &host]);
        netns.run(move || {
            run(&["ip", "addr", "add", &format!("{v4}/32"), "dev", &inside]);
            run(&["ip", "addr", "add", &format!("{v6}/128"), "dev", &inside, "nodad"]);
            run(&["ip", "link", "set", &inside, "up"]);
            run(&["ip", "route", "add", "169.254.1.1", "dev", &inside, "scope", "link"]);
            run(&["ip", "route", "add", "default", "via", "169.254.1.1", "dev", &inside]);
            let neighbour =
                ["ip", "neigh", "add", "169.254.1.1", "lladdr", &mac, "dev", &inside, "nud", "permanent"];
            run(&neighbour);
            run(&["ip", "-6", "neigh", "add", "fe80::1", "lladdr", &mac, "dev", &inside, "nud", "permanent"]);
            run(&["ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", &inside]);
        });
        Self { v4, v6, netns, ifindex }
    }

    /// Does something in the pod.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.netns.spawn(work)
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.netns.run(work)
    }

    pub fn addr(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(family), port)
    }

    pub fn endpoint(&self, identity: u32, class: u32) -> Endpoint {
        Endpoint { identity, class, v4: self.v4.into(), v6: self.v6.into(), ..Endpoint::default() }
    }
}

/// (Not from /sys, which shows the network namespace that it was mounted in.)
fn mac_of(ifname: &str) -> String {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", ifname]).output().expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_once("link/ether ").expect("an Ethernet link").1[..17].to_owned()
}
