//! Services as the control plane tells them, by packets: who gets whom, of traffic policies, zones, tiers, host ports,
//! external addresses and affinity. All of it in network namespaces made for the test. Needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ebpf_shared::nat::NodeConfig;
use ebpf_shared::packet::protocol::TCP;
use ebpf_shared::redirect::NO_SLOT;
use ebpf_shared::{Addr, ServiceKey};
use mesh_model::resource::NamespacedName;
use node_agent::desired::service::services;
use node_agent::desired::{Pod as Told, PodAddresses};
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::Defaults;
use node_agent::subscribe::{
    BackendState, Frontend, FrontendKind, HostPort, NodeRoute, Resources, Service, ServiceBackend,
    ServicePort,
};
use support::pods::{BOTH, Family, Netns, Pod, forward};
use support::policy::Writer;
use support::{Sandbox, in_sandbox, run};

const NODE: PodAddresses = PodAddresses {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
};
const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;
const HOST_PORT: u16 = 8_443;

/// Of a service, and outside: an external address, a load balancer's, a client, a backend elsewhere.
struct Addresses {
    vip: IpAddr,
    node: IpAddr,
    external: IpAddr,
    client: IpAddr,
    far: IpAddr,
}

fn of(family: Family) -> Addresses {
    let [vip, node, external, client, far] = match family {
        Family::V4 => ["10.101.0.1", "192.0.2.1", "203.0.113.7", "192.0.2.9", "192.0.2.2"],
        Family::V6 => ["fd00:2::1", "2001:db8:1::1", "2001:db8:7::7", "2001:db8:1::9", "2001:db8:1::2"],
    }
    .map(|text| text.parse().expect("an address"));
    Addresses { vip, node, external, client, far }
}

/// A node with two pods, and a host beside it where a client is, and a backend.
struct Scene {
    kernel: Kernel,
    one: Pod,
    two: Pod,
    outside: Netns,
    resources: Resources,
    known: BTreeSet<ServiceKey>,
}

impl Scene {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        forward();
        let [one, two] = [5, 6].map(|number| Pod::new(&mut kernel, number));
        Writer::default().put(&mut kernel, 1, &Defaults::default(), &[]);
        for pod in [&one, &two] {
            kernel.endpoints.upsert(pod.ifindex, pod.endpoint(300, 1)).expect("writable");
        }
        let outside = Netns::new();
        run(&["ip", "link", "add", "net", "type", "veth", "peer", "name", "out"]);
        outside.take("out");
        for family in BOTH {
            address("net", of(family).node);
        }
        outside.run(|| {
            for family in BOTH {
                address("out", of(family).client);
                address("out", of(family).far);
            }
            for family in BOTH {
                for to in [of(family).external.to_string(), pods_of(family).to_owned()] {
                    run(&["ip", "route", "add", &to, "via", &of(family).node.to_string()]);
                }
            }
        });
        for (netns, family, name) in BOTH.iter().flat_map(|family| {
            [(&one.netns, *family, "one"), (&two.netns, *family, "two"), (&outside, *family, "far")]
        }) {
            let at = match name {
                "one" => one.at(family, PORT),
                "two" => two.at(family, PORT),
                _ => SocketAddr::new(of(family).far, PORT),
            };
            greet(netns, at, name);
        }
        let node = NodeConfig {
            v4: NODE.v4.into(),
            v6: NODE.v6.map_or(Addr::UNSPECIFIED, Addr::from),
            first_port: 61_000,
            last_port: 61_999,
            ..NodeConfig::default()
        };
        kernel.set_net(&["net".to_owned()], node, None).expect("attachable");
        let mut resources = Resources::default();
        let route = NodeRoute {
            address: NODE.v4,
            address6: NODE.v6,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            zone: "a".into(),
            tunnel: None,
        };
        resources.nodes.insert("n1".into(), route);
        Self { kernel, one, two, outside, resources, known: BTreeSet::new() }
    }

    /// A backend on this node, and one elsewhere; both at all that leads to a service.
    fn service(&self, family: Family) -> Service {
        let Addresses { vip, external, far, .. } = of(family);
        let backend =
            |address| ServiceBackend { address, port: PORT, weight: 1, ..ServiceBackend::default() };
        let front = |kind, address, port| Frontend { kind, address, port, service_port: 80, protocol: TCP };
        Service {
            addresses: vec![vip],
            ports: vec![ServicePort {
                port: 80,
                protocol: TCP,
                proxy_port: 0,
                backends: vec![backend(self.two.addr(family)), backend(far)],
                ..ServicePort::default()
            }],
            frontends: vec![
                front(FrontendKind::NodePort, None, NODE_PORT),
                front(FrontendKind::ExternalIp, Some(external), 80),
            ],
            ..Service::default()
        }
    }

    /// Has the kernel hold what these resources come to.
    fn tell(&mut self, service: Service) {
        self.resources.services.insert(NamespacedName::new("shop", "pay"), service.into());
        self.write();
    }

    fn write(&mut self) {
        let told = |pod: &Pod| Told {
            addresses: PodAddresses { v4: pod.v4, v6: Some(pod.v6) },
            ifindex: pod.ifindex,
            netns_cookie: 0,
        };
        let pods = BTreeMap::from([
            (NamespacedName::new("shop", "one"), told(&self.one)),
            (NamespacedName::new("shop", "two"), told(&self.two)),
        ]);
        let wanted: BTreeMap<ServiceKey, _> = services(&self.resources, NODE, &pods, &mut |_| NO_SLOT)
            .into_iter()
            .map(|(at, entry)| {
                (ServiceKey::new(at.address.into(), at.port, at.protocol, at.scope.number()), entry)
            })
            .collect();
        for (key, entry) in &wanted {
            self.kernel.services.put(*key, entry).expect("writable");
        }
        for key in &self.known {
            if !wanted.contains_key(key) {
                self.kernel.services.remove(key).expect("removable");
            }
        }
        self.known = wanted.into_keys().collect();
    }
}

fn pods_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.1.0.0/24",
        Family::V6 => "fd00:1::/64",
    }
}

fn address(ifname: &str, addr: IpAddr) {
    match addr {
        IpAddr::V4(_) => run(&["ip", "addr", "add", &format!("{addr}/24"), "dev", ifname]),
        IpAddr::V6(_) => run(&["ip", "addr", "add", &format!("{addr}/64"), "dev", ifname, "nodad"]),
    }
    run(&["ip", "link", "set", ifname, "up"]);
}

/// Says its name to whoever connects.
fn greet(netns: &Netns, at: SocketAddr, name: &'static str) {
    let listener = netns.run(move || TcpListener::bind(at).expect("free"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
}

/// Who answers there; `None`: nobody.
fn who(netns: &Netns, at: SocketAddr) -> Option<String> {
    netns.run(move || {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(3)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut name = String::new();
        stream.read_to_string(&mut name).ok()?;
        Some(name)
    })
}

/// Everybody who answers there: of two with equal shares, one stays hidden once in a million.
fn all(netns: &Netns, at: SocketAddr) -> BTreeSet<String> {
    (0..20).map_while(|_| who(netns, at)).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn traffic_policies_keep_to_the_node_the_clients_that_they_are_about() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let Addresses { vip, node, external, .. } = of(family);
            let (within, outside) = (SocketAddr::new(vip, 80), SocketAddr::new(node, NODE_PORT));
            let external = SocketAddr::new(external, 80);
            let service = scene.service(family);
            scene.tell(service.clone());
            assert_eq!(all(&scene.one.netns, within), names(["two", "far"]), "{family:?}");
            assert_eq!(all(&scene.outside, outside), names(["two", "far"]), "{family:?}");

            scene.tell(Service { internal_local: true, ..service.clone() });
            assert_eq!(all(&scene.one.netns, within), names(["two"]), "{family:?}: internal");
            assert_eq!(all(&scene.outside, outside), names(["two", "far"]), "{family:?}: internal");

            scene.tell(Service { external_local: true, ..service.clone() });
            assert_eq!(all(&scene.one.netns, within), names(["two", "far"]), "{family:?}: external");
            assert_eq!(all(&scene.outside, outside), names(["two"]), "{family:?}: external");
            assert_eq!(all(&scene.outside, external), names(["two"]), "{family:?}: external");

            // Nobody here: nobody at all, for those.
            let mut empty = Service { external_local: true, internal_local: true, ..service.clone() };
            empty.ports[0].backends.remove(0);
            scene.tell(empty);
            assert_eq!(who(&scene.one.netns, within), None, "{family:?}");
            assert_eq!(who(&scene.outside, outside), None, "{family:?}");
        }
    });
}

#[test]
fn zones_and_tiers_say_who_is_asked() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let (within, outside) =
                (SocketAddr::new(of(family).vip, 80), SocketAddr::new(of(family).node, NODE_PORT));
            let service = scene.service(family);
            let with = |change: &dyn Fn(&mut [ServiceBackend])| {
                let mut changed = service.clone();
                change(&mut changed.ports[0].backends);
                changed
            };
            let mut expect = |told: Service, expected: BTreeSet<String>, what: &str| {
                scene.tell(told);
                assert_eq!(all(&scene.one.netns, within), expected, "{family:?}: {what}, from a pod");
                assert_eq!(all(&scene.outside, outside), expected, "{family:?}: {what}, from outside");
            };
            let hinted = |zones: [&str; 2]| {
                with(&|backends| {
                    for (backend, zone) in backends.iter_mut().zip(zones) {
                        backend.hint_zones = [zone.to_owned()].into();
                    }
                })
            };
            expect(hinted(["a", "b"]), names(["two"]), "hints");
            expect(hinted(["b", "a"]), names(["far"]), "hints");
            expect(hinted(["b", "c"]), names(["two", "far"]), "hints for nobody here");
            let zoned = with(&|backends| {
                backends[0].zone = "b".into();
                backends[1].zone = "a".into();
            });
            expect(zoned.clone(), names(["two", "far"]), "zones");
            expect(Service { prefer_same_zone: true, ..zoned }, names(["far"]), "the own zone");
            let on = |nodes: [&str; 2]| {
                with(&|backends| {
                    for (backend, node) in backends.iter_mut().zip(nodes) {
                        backend.zone = "a".into();
                        backend.hint_nodes = [node.to_owned()].into();
                    }
                })
            };
            expect(on(["n1", "n2"]), names(["two"]), "hints for nodes");
            expect(on(["n2", "n1"]), names(["far"]), "hints for nodes");
            expect(on(["n2", "n3"]), names(["two", "far"]), "hints for no node here");
            let near = Service { prefer_same_node: true, prefer_same_zone: true, ..service.clone() };
            expect(near.clone(), names(["two"]), "the own node");
            let mut away = near;
            away.ports[0].backends[0].state = BackendState::NotReady;
            expect(away, names(["far"]), "the own node has none");
            let tiers = |state| {
                with(&move |backends| {
                    backends[0].state = state;
                    backends[1].priority = 1;
                })
            };
            expect(tiers(BackendState::Active), names(["two"]), "the first tier");
            expect(tiers(BackendState::NotReady), names(["far"]), "the second tier");
            expect(tiers(BackendState::Terminating), names(["far"]), "the second tier");
            expect(tiers(BackendState::Active), names(["two"]), "the first tier again");
        }
    });
}

#[test]
fn host_ports_and_external_addresses_lead_to_pods() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let told = |address| HostPort { address, host_port: HOST_PORT, port: PORT, protocol: TCP };
        for family in BOTH {
            let Addresses { node, external, .. } = of(family);
            let at = SocketAddr::new(node, HOST_PORT);
            assert_eq!(who(&scene.outside, at), None, "{family:?}: not yet");
            for address in [None, Some(node)] {
                scene.resources.host_ports.insert(NamespacedName::new("shop", "one"), vec![told(address)]);
                scene.write();
                assert_eq!(all(&scene.outside, at), names(["one"]), "{family:?}: {address:?}");
                assert_eq!(all(&scene.two.netns, at), names(["one"]), "{family:?}: {address:?}, from a pod");
            }
            scene.resources.host_ports.clear();
            scene.write();
            assert_eq!(who(&scene.outside, at), None, "{family:?}: not any more");

            let at = SocketAddr::new(external, 80);
            assert_eq!(who(&scene.outside, at), None, "{family:?}: nobody's");
            let service = scene.service(family);
            scene.tell(service);
            assert_eq!(all(&scene.outside, at), names(["two", "far"]), "{family:?}");
            assert_eq!(all(&scene.one.netns, at), names(["two", "far"]), "{family:?}: from a pod");
            scene.resources.services.clear();
            scene.write();
        }
    });
}

#[test]
fn a_client_outside_stays_with_its_backend_until_it_has_been_away_for_long_enough() {
    const AWAY: Duration = Duration::from_millis(2_100);
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            let service = scene.service(family);
            scene.tell(Service { affinity_seconds: 600, ..service.clone() });
            assert_eq!(all(&scene.outside, at).len(), 1, "{family:?}: by packets, from many ports");
            // The same client, and as many chances to get the other.
            scene.tell(Service { affinity_seconds: 2, ..service.clone() });
            let first = who(&scene.outside, at).expect("somebody");
            let until = Instant::now() + Duration::from_secs(60);
            loop {
                std::thread::sleep(AWAY);
                let next = who(&scene.outside, at).expect("somebody");
                if next != first {
                    break;
                }
                assert!(Instant::now() < until, "{family:?}: always {first}");
            }
        }
    });
}
