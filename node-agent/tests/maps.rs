//! Looking at the kernel's maps, and finding what is not as it is to be. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_shared::{
    Addr, Backend, CapturedKey, ConnEntry, ConnKey, Endpoint, Netns, PeerKey, ReverseKey, RuleKey, RuleValue,
    ServiceKey, ServiceValue, Sides, SockAddr, Unnamed, limits, nat::NodeConfig, overlay::Hop,
    service::AnswererKey, service::ReverseValue,
};
use ipnet::IpNet;
use node_agent::{
    config::{DumpArgs, Output},
    desired::{
        Desired, EndpointEntry, NetnsEntry, PodAddresses, Scope, ServedBackend, ServiceEntry, ServiceFrontend,
    },
    kernel::{Around, Kernel},
    maps::{verify, verify_around},
    maps_cli,
};
use support::{Sandbox, in_sandbox, run};

const POD: Addr = Addr::v4(ebpf_shared::Ip4::from_be(u32::from_ne_bytes([10, 1, 1, 2])));

fn pinned(bpffs: &Path, name: &str) -> MapData {
    MapData::from_pin(bpffs.join("maps").join(name)).unwrap()
}

/// Adds an entry to a hash map by hand; what is returned takes it out again.
fn spoil<K: Pod + 'static, V: Pod + 'static>(map: Map, key: K, value: V) -> Box<dyn FnOnce()> {
    let mut map: HashMap<MapData, K, V> = map.try_into().unwrap();
    map.insert(key, value, 0).unwrap();
    Box::new(move || map.remove(&key).unwrap())
}

fn wrong(bpffs: &Path, desired: &Desired) -> Vec<&'static str> {
    let verified = verify(bpffs, desired).unwrap();
    verified.into_iter().filter(|map| !map.differences.is_empty()).map(|map| map.map).collect()
}

/// A pod with a sidecar, in the kernel and as it is to be.
fn node(sandbox: &Sandbox) -> (Kernel, Desired) {
    let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).unwrap();
    let identities = [("10.1.1.2/32", 300), ("10.1.0.0/16", 5), ("fd00::/8", 9)];
    let identities: Vec<_> = identities.map(|(net, who)| (net.parse().unwrap(), who)).into();
    for (net, identity) in &identities {
        kernel.identities.upsert(net, *identity).unwrap();
    }
    let addresses = PodAddresses { v4: [10, 1, 1, 2].into(), v6: None };
    let entry = EndpointEntry { addresses, identity: 300, class: 7, audit: false, incarnation: 3 };
    let endpoint = Endpoint { identity: 300, class: 7, incarnation: 3, v4: POD, ..Endpoint::default() };
    kernel.endpoints.upsert(9, endpoint).unwrap();
    kernel.put_sidecar(77, &[(8080, 6)].into()).unwrap();
    let desired = Desired {
        identities: identities.into_iter().collect(),
        endpoints: [(9, entry)].into(),
        netns: [(77, NetnsEntry { captured: [(8080, 6)].into() })].into(),
        ..Desired::default()
    };
    (kernel, desired)
}

#[test]
fn a_wrong_entry_in_any_map_is_found_and_named_by_its_map() {
    in_sandbox(|sandbox| {
        let (_kernel, desired) = node(sandbox);
        let bpffs = sandbox.bpffs();
        assert_eq!(wrong(&bpffs, &desired), Vec::<&str>::new());
        let hash = |name: &str| Map::HashMap(pinned(&bpffs, name));
        let lru = |name: &str| Map::LruHashMap(pinned(&bpffs, name));
        let stray = SockAddr::new(POD, 80);
        let (key, odd) = (ConnKey::default(), ConnEntry { answered: 9, ..ConnEntry::default() });
        type Spoil<'a> = (&'static str, Box<dyn Fn() -> Box<dyn FnOnce()> + 'a>);
        let all: Vec<Spoil<'_>> = vec![
            ("HOSTS", Box::new(|| spoil(hash("HOSTS"), Addr::UNSPECIFIED, 1u32))),
            ("ENDPOINTS", Box::new(|| spoil(hash("ENDPOINTS"), 1u32, Endpoint::default()))),
            ("CLASSES", Box::new(|| spoil(hash("CLASSES"), 99u32, Unnamed::default()))),
            (
                "PEERS",
                Box::new(|| spoil(hash("PEERS"), PeerKey { class: 99, identity: 1 }, Sides::default())),
            ),
            ("CONNTRACK", Box::new(|| spoil(lru("CONNTRACK"), key, odd))),
            (
                "SERVICES",
                Box::new(|| spoil(hash("SERVICES"), ServiceKey::new(POD, 80, 6, 0), ServiceValue::default())),
            ),
            (
                "BACKENDS",
                Box::new(|| spoil(hash("BACKENDS"), 1u32, Backend { at: stray, ..Backend::default() })),
            ),
            (
                "REVERSE",
                Box::new(|| spoil(lru("REVERSE"), ReverseKey::new(0, stray), ReverseValue::default())),
            ),
            ("ANSWERERS", Box::new(|| spoil(hash("ANSWERERS"), AnswererKey { service: 9, at: stray }, 1u8))),
            ("NETNS", Box::new(|| spoil(hash("NETNS"), 1u64, Netns::default()))),
            ("CAPTURED", Box::new(|| spoil(hash("CAPTURED"), CapturedKey::new(1, 1, 6), 1u8))),
        ];
        for (name, put) in all {
            let take_out = put();
            // Of a service that is there, the bit in SERVED has to be as well.
            let expected = if name == "SERVICES" { vec!["SERVED", name] } else { vec![name] };
            assert_eq!(wrong(&bpffs, &desired), expected);
            take_out();
            assert_eq!(wrong(&bpffs, &desired), Vec::<&str>::new(), "{name}");
        }
        let mut cidrs: LpmTrie<MapData, Addr, u32> =
            Map::LpmTrie(pinned(&bpffs, "CIDRS")).try_into().unwrap();
        let stray = Key::new(8, Addr::from(std::net::Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)));
        cidrs.insert(&stray, 4, 0).unwrap();
        assert_eq!(wrong(&bpffs, &desired), ["CIDRS"]);
        cidrs.remove(&stray).unwrap();
        let mut rules: LpmTrie<MapData, RuleKey, RuleValue> =
            Map::LpmTrie(pinned(&bpffs, "RULES")).try_into().unwrap();
        let stray = Key::new(RuleKey::SET_BITS, RuleKey::new(99, 0, 0));
        rules.insert(&stray, RuleValue::default(), 0).unwrap();
        assert_eq!(wrong(&bpffs, &desired), ["RULES"]);
        rules.remove(&stray).unwrap();
        let mut format: Array<MapData, u32> = Map::Array(pinned(&bpffs, "FORMAT")).try_into().unwrap();
        format.set(0, limits::FORMAT + 1, 0).unwrap();
        assert_eq!(wrong(&bpffs, &desired), ["FORMAT"]);
    });
}

#[test]
fn an_entry_that_is_missing_or_has_another_value_is_found_with_both_values() {
    in_sandbox(|sandbox| {
        let (mut kernel, desired) = node(sandbox);
        kernel.identities.upsert(&"10.1.1.2/32".parse().unwrap(), 301).unwrap();
        kernel.endpoints.delete(&9).unwrap();
        let verified = verify(&sandbox.bpffs(), &desired).unwrap();
        let of = |name: &str| verified.iter().find(|map| map.map == name).unwrap().differences.clone();
        let hosts = of("HOSTS");
        assert_eq!((hosts[0].found.as_str(), hosts[0].wanted.as_str()), ("identity 301", "identity 300"));
        assert_eq!(hosts[0].key, "address 10.1.1.2");
        assert_eq!((of("ENDPOINTS")[0].found.as_str(), of("ENDPOINTS").len()), ("nothing", 1));
    });
}

/// A service of so many backends at `10.101.0.1`, in the kernel and as it is to be.
fn serve(kernel: &mut Kernel, desired: &mut Desired, port: u16, backends: u8) -> ServiceKey {
    let served = ServedBackend { weight: 1, chosen: true, here: false };
    let backends = (0..backends).map(|last| (([10, 1, 2, last], 8080).into(), served)).collect();
    let entry = ServiceEntry { affinity_seconds: 60, backends, ..ServiceEntry::default() };
    let address = IpAddr::from([10, 101, 0, 1]);
    let key = ServiceKey::new(address.into(), port, 6, 0);
    kernel.services.put(key, &entry).unwrap();
    let frontend = ServiceFrontend { address, port, protocol: 6, scope: Scope::Inside };
    desired.services.insert(frontend, entry);
    key
}

#[test]
fn every_field_of_a_service_is_compared_with_what_its_backends_make_of_it() {
    in_sandbox(|sandbox| {
        let (mut kernel, mut desired) = node(sandbox);
        let bpffs = sandbox.bpffs();
        let [none, one, two, other] = [(80, 0), (81, 1), (82, 2), (83, 2)]
            .map(|(port, count)| serve(&mut kernel, &mut desired, port, count));
        assert_eq!(wrong(&bpffs, &desired), Vec::<&str>::new());
        let mut services: HashMap<MapData, ServiceKey, ServiceValue> =
            Map::HashMap(pinned(&bpffs, "SERVICES")).try_into().unwrap();
        let of_other = services.get(&other, 0).unwrap();
        type Change = Box<dyn Fn(&mut ServiceValue)>;
        let changes: [(ServiceKey, Change); 9] = [
            (none, Box::new(|value| value.size = 1)),
            (one, Box::new(|value| value.size = 0)),
            (one, Box::new(|value| value.only += 1)),
            (two, Box::new(|value| value.size = 0)),
            (two, Box::new(|value| value.size -= 1)),
            // Of its own size, and another one's.
            (two, Box::new(move |value| value.table = of_other.table)),
            (two, Box::new(|value| value.affinity_seconds = 61)),
            (two, Box::new(|value| value.flags |= ServiceValue::DIRECT)),
            (two, Box::new(|value| value.proxy_port = 15_001)),
        ];
        for (number, (key, change)) in changes.iter().enumerate() {
            let right = services.get(key, 0).unwrap();
            let mut value = right;
            change(&mut value);
            services.insert(key, value, 0).unwrap();
            assert!(wrong(&bpffs, &desired).contains(&"SERVICES"), "{number}");
            services.insert(key, right, 0).unwrap();
            assert_eq!(wrong(&bpffs, &desired), Vec::<&str>::new(), "{number}");
        }
    });
}

#[test]
fn a_backend_that_is_to_answer_directly_and_may_not_is_found() {
    in_sandbox(|sandbox| {
        let (mut kernel, mut desired) = node(sandbox);
        let bpffs = sandbox.bpffs();
        let address = IpAddr::from([203, 0, 113, 7]);
        let served = |here| ServedBackend { weight: 1, chosen: true, here };
        let here: SocketAddr = ([10, 1, 1, 2], 8080).into();
        let backends = [(here, served(true)), (([10, 1, 2, 2], 8080).into(), served(false))];
        let entry = ServiceEntry { direct: true, backends: backends.into(), ..ServiceEntry::default() };
        kernel.services.put(ServiceKey::new(address.into(), 80, 6, 1), &entry).unwrap();
        let frontend = ServiceFrontend { address, port: 80, protocol: 6, scope: Scope::Outside };
        desired.services.insert(frontend, entry);
        assert_eq!(wrong(&bpffs, &desired), Vec::<&str>::new());
        let mut answerers: HashMap<MapData, AnswererKey, u8> =
            Map::HashMap(pinned(&bpffs, "ANSWERERS")).try_into().unwrap();
        let all: Vec<AnswererKey> = answerers.keys().map(Result::unwrap).collect();
        let [key] = all[..] else { panic!("the one that is here: {all:?}") };
        answerers.remove(&key).unwrap();
        let differences = || {
            let verified = verify(&bpffs, &desired).unwrap();
            verified.into_iter().find(|map| map.map == "ANSWERERS").unwrap().differences
        };
        assert_eq!(differences()[0].key, "service 203.0.113.7:80/6/1, backend 10.1.1.2:8080");
        assert_eq!(differences()[0].found, "nothing");
        // Another service's, which is not there.
        answerers.insert(AnswererKey { service: key.service + 1, ..key }, 1, 0).unwrap();
        assert_eq!(differences().len(), 2);
    });
}

/// A node with a pod at its loopback interface, and one interface to the outside, as it is set up.
#[test]
fn how_the_node_is_set_up_is_compared_as_well() {
    in_sandbox(|sandbox| {
        let (mut kernel, desired) = node(sandbox);
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        let config = NodeConfig { v4: POD, first_port: 40_000, last_port: 50_000, ..NodeConfig::default() };
        kernel.set_net(&["up0".to_owned()], config, None).unwrap();
        let at: IpAddr = [192, 0, 2, 1].into();
        kernel.set_locals(&[at].into()).unwrap();
        kernel.set_control(&[SocketAddr::new(at, 9443)].into()).unwrap();
        let hop = Hop { v4: Addr::from(at), ..Hop::default() };
        let net: IpNet = "10.1.2.0/24".parse().unwrap();
        kernel.set_hops(&[(net, hop)].into()).unwrap();
        let pod = kernel.attach_pod("lo").unwrap();
        let bpffs = sandbox.bpffs();
        let around = Around { pods: [pod].into(), ..kernel.around() };
        let wrong = || -> Vec<(&str, String)> {
            let verified = verify_around(&bpffs, &desired, &around).unwrap();
            let all = verified
                .into_iter()
                .flat_map(|map| map.differences.into_iter().map(move |each| (map.map, each.key)));
            all.collect()
        };
        let maps = || wrong().into_iter().map(|(map, _)| map).collect::<Vec<_>>();
        assert_eq!(wrong(), []);
        let of = |around: &Around| verify_around(&bpffs, &desired, around).unwrap();
        let programs = of(&around).into_iter().find(|map| map.map == "programs").unwrap();
        assert_eq!(programs.entries, 6 + 4 + 10, "of the pod, the interface and the sockets");

        let hash = |name: &str| Map::HashMap(pinned(&bpffs, name));
        let stray = Addr::from(IpAddr::from([203, 0, 113, 7]));
        // Beside the right one; under the number of another one; without a number.
        for number in [2u32, 1, 0] {
            let take_out = spoil(hash("LOCALS"), stray, number);
            assert!(maps().contains(&"LOCALS"), "{number}");
            take_out();
        }
        let take_out = spoil(hash("CONTROL"), SockAddr::new(stray, 80), 1u8);
        assert_eq!(maps(), ["CONTROL"]);
        take_out();
        let mut nodes: LpmTrie<MapData, Addr, Hop> =
            Map::LpmTrie(pinned(&bpffs, "NODES")).try_into().unwrap();
        let key = Key::new(96 + 24, Addr::from(net.addr()));
        nodes.insert(&key, Hop { flags: Hop::HERE, ..hop }, 0).unwrap();
        assert_eq!(maps(), ["NODES"]);
        nodes.insert(&key, hop, 0).unwrap();
        let mut guarded: Array<MapData, u32> = Map::Array(pinned(&bpffs, "GUARDED")).try_into().unwrap();
        guarded.set(0, 1, 0).unwrap();
        assert_eq!(maps(), ["GUARDED"]);
        guarded.set(0, 0, 0).unwrap();
        let mut configs: Array<MapData, NodeConfig> =
            Map::Array(pinned(&bpffs, "CONFIG")).try_into().unwrap();
        let right = configs.get(&0, 0).unwrap();
        configs.set(0, NodeConfig { first_port: 1, ..right }, 0).unwrap();
        assert_eq!(maps(), ["CONFIG"]);
        configs.set(0, right, 0).unwrap();
        assert_eq!(wrong(), []);

        // Counters, of which one has gone back, and one has been raised by somebody else.
        let off = || {
            let of = |name: &str| {
                let all = verify_around(&bpffs, &desired, &around).unwrap();
                all.into_iter().find(|map| map.map == name).unwrap().differences
            };
            [of("EPOCHS"), of("BACKEND_EPOCH")].concat().into_iter().map(|each| each.key).collect::<Vec<_>>()
        };
        assert_eq!(off(), Vec::<String>::new());
        let bucket = ebpf_shared::epochs::of_peer(&POD);
        for (name, at, step) in [("EPOCHS", 0, 1), ("EPOCHS", bucket, -1), ("BACKEND_EPOCH", 0, -1)] {
            let mut counters: Array<MapData, u64> = Map::Array(pinned(&bpffs, name)).try_into().unwrap();
            let right = counters.get(&at, 0).unwrap();
            counters.set(at, right.wrapping_add_signed(step), 0).unwrap();
            assert_eq!(off(), [format!("counter {at}")], "{name}");
            counters.set(at, right, 0).unwrap();
            assert_eq!(off(), Vec::<String>::new(), "{name}");
        }
        // The programs' own one, of which any number is right.
        let mut counters: Array<MapData, u64> =
            Map::Array(pinned(&bpffs, "BACKEND_EPOCH")).try_into().unwrap();
        counters.set(1, 7, 0).unwrap();
        assert_eq!(off(), Vec::<String>::new());

        // The programs of two places the wrong way round, and one that is gone.
        let pin = |name: &str| bpffs.join("links").join(name);
        let [from, host, aside] =
            ["from_pod", "host_in", "aside"].map(|name| pin(&format!("tc-{pod}-{name}")));
        let swap = || {
            for (one, two) in [(&from, &aside), (&host, &from), (&aside, &host)] {
                std::fs::rename(one, two).unwrap();
            }
        };
        swap();
        let link = |name: &str| ("programs", format!("link tc-{pod}-{name}"));
        assert_eq!(wrong(), [link("from_pod"), link("host_in")]);
        swap();
        assert_eq!(wrong(), []);
        std::fs::remove_file(&host).unwrap();
        assert_eq!(wrong(), [link("host_in")]);
        kernel.attach_pod("lo").unwrap();
        assert_eq!(wrong(), []);
        run(&["ip", "link", "delete", "up0"]);
        let gone: Vec<_> = wrong();
        assert_eq!(gone.len(), 4, "what they were at is gone: {gone:?}");
        // Another agent's programs are none of this one's, and without its numbers the names are what counts.
        let other = Around {
            programs: around.programs.keys().map(|name| (name.clone(), 1)).collect(),
            ..around.clone()
        };
        let programs = |around: &Around| {
            of(around).into_iter().find(|map| map.map == "programs").unwrap().differences.len()
        };
        assert_eq!(programs(&other), 6 + 4 + 10);
        assert_eq!(programs(&Around { programs: BTreeMap::new(), ..around.clone() }), 4);
    });
}

#[test]
fn maps_are_shown_with_an_agent_and_without_and_never_changed() {
    in_sandbox(|sandbox| {
        let (kernel, _) = node(sandbox);
        let shown = |map: Option<&str>, output| {
            let args = DumpArgs { map: map.map(str::to_owned), bpffs: sandbox.bpffs(), output };
            let mut out = Vec::new();
            maps_cli::print(&args, &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        let with = shown(None, Output::Json).unwrap();
        drop(kernel);
        assert_eq!(shown(None, Output::Json).unwrap(), with);
        let all: serde_json::Value = serde_json::from_str(&with).unwrap();
        assert!(all.as_array().unwrap().len() >= 10);
        let hosts = shown(Some("hosts"), Output::Table).unwrap();
        let expected = format!("HOSTS: 1 of {}\n  ADDRESS   IDENTITY\n  10.1.1.2  300\n", limits::HOSTS);
        assert_eq!(hosts, expected);
        let refused = shown(Some("NOSUCH"), Output::Table).unwrap_err().to_string();
        assert!(refused.contains("HOSTS"), "{refused}");
    });
}
