//! Looking at the kernel's maps, and finding what is not as it is to be. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod support;

use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use ebpf_shared::{
    Addr, Backend, CapturedKey, ConnEntry, ConnKey, Endpoint, Netns, PeerKey, ReverseKey, RuleKey, RuleValue,
    ServiceKey, ServiceValue, Sides, SockAddr, limits, service::ReverseValue,
};
use node_agent::{
    config::{DumpArgs, Output},
    desired::{Desired, EndpointEntry, NetnsEntry, PodAddresses},
    kernel::Kernel,
    maps::verify,
    maps_cli,
};
use support::{Sandbox, in_sandbox};

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
            ("CLASSES", Box::new(|| spoil(hash("CLASSES"), 99u32, Sides::default()))),
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
            ("NETNS", Box::new(|| spoil(hash("NETNS"), 1u64, Netns::default()))),
            ("CAPTURED", Box::new(|| spoil(hash("CAPTURED"), CapturedKey::new(1, 1, 6), 1u8))),
        ];
        for (name, put) in all {
            let take_out = put();
            // A service that nobody wants lacks its bit as well.
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
