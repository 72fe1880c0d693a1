//! Whether the maps hold what they are to hold.
//!
//! What the agent writes is compared entry by entry, keys and values. Numbers that it chose on the way (of services and
//! their backends) are read as what they stand for. The programs' own maps are looked through for what no program writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use ebpf_shared::{
    Addr, Backend, CapturedKey, Endpoint, Netns, PeerKey, Proxy, Sides, SockAddr, host::INTERFACE, identity,
    limits,
};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    desired::{Desired, EndpointEntry},
    kernel::{
        Around, Cidr, KernelError, RulePrefix, bare,
        dump::{self, Entry, plain},
        miscounted, misshapen, service_flags, strayed,
    },
};

/// Entries by the text of their key.
type Entries = BTreeMap<String, Entry>;

/// What was found of one map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    pub map: &'static str,
    /// That it holds.
    pub entries: usize,
    pub differences: Vec<Difference>,
}

/// An entry that is not as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    /// In the kernel.
    pub found: String,
    /// What it is to be.
    pub wanted: String,
}

/// Said of an entry that is not there.
const NOTHING: &str = "nothing";

/// The kernel's value of an endpoint.
pub(crate) fn endpoint_value(entry: &EndpointEntry) -> Endpoint {
    Endpoint {
        identity: entry.identity,
        class: entry.class,
        flags: if entry.audit { Endpoint::AUDIT } else { 0 },
        incarnation: entry.incarnation,
        v4: entry.addresses.v4.into(),
        v6: entry.addresses.v6.map_or(Addr::UNSPECIFIED, Addr::from),
        ..Endpoint::default()
    }
}

/// Looks through every map that can be shown.
///
/// # Errors
/// One can't be read.
pub fn verify(bpffs: &Path, desired: &Desired) -> Result<Vec<Verified>, KernelError> {
    verify_around(bpffs, desired, &Around::default())
}

/// The same, and through how the node is set up: its own addresses, the other nodes, and where programs are attached.
///
/// # Errors
/// A map can't be read.
pub fn verify_around(bpffs: &Path, desired: &Desired, around: &Around) -> Result<Vec<Verified>, KernelError> {
    let mut maps: BTreeMap<&'static str, Entries> = BTreeMap::new();
    for how in dump::all() {
        let entries = dump::dump(bpffs, how.as_ref())?;
        maps.insert(how.name(), entries.into_iter().map(|entry| (entry.key_text(), entry)).collect());
    }
    let mut verified = compare(&maps, desired, around);
    let misshapen = misshapen(bpffs)?.into_iter().map(|(key, found, wanted)| {
        let at = SocketAddr::new(key.addr.into(), key.port);
        Difference { key: format!("service {at}/{}/{}", key.protocol, key.scope), found, wanted }
    });
    if let Some(services) = verified.iter_mut().find(|verified| verified.map == "SERVICES") {
        services.differences.extend(misshapen);
    }
    let (entries, bare) = bare(bpffs, around);
    let of = |(link, found, wanted)| Difference { key: format!("link {link}"), found, wanted };
    verified.push(Verified { map: "programs", entries, differences: bare.into_iter().map(of).collect() });
    // What services need of the arrays that they have in common: by themselves arrays have no entries.
    verified.extend(strayed(bpffs)?.map(|strayed| {
        let differences = strayed.astray.iter().map(|(at, found, wanted)| Difference {
            key: format!("place {at}"),
            found: found.to_string(),
            wanted: wanted.to_string(),
        });
        Verified { map: strayed.map, entries: strayed.entries, differences: differences.collect() }
    }));
    verified.extend(miscounted(bpffs, around)?.into_iter().map(|(map, entries, wrong)| {
        let of = |(at, found, wanted): (u32, u64, u64)| Difference {
            key: format!("counter {at}"),
            found: found.to_string(),
            wanted: wanted.to_string(),
        };
        Verified { map, entries, differences: wrong.into_iter().map(of).collect() }
    }));
    verified.sort_by_key(|verified| verified.map);
    Ok(verified)
}

/// PURE.
fn compare(maps: &BTreeMap<&'static str, Entries>, desired: &Desired, around: &Around) -> Vec<Verified> {
    let mut exact = exact(desired);
    exact.extend(set_up(desired, around));
    exact.extend(services(desired));
    let names = names(maps);
    let verified = maps.iter().map(|(map, found)| {
        let mut differences = match exact.get(map) {
            Some(wanted) => differences(&named(map, found, &names), wanted),
            None => Vec::new(),
        };
        let mut numbers = BTreeSet::new();
        let shared =
            |entry: &&Entry| *map == "LOCALS" && !numbers.insert(plain(&field(&entry.value, "number")));
        differences.extend(found.values().filter(shared).map(|entry| Difference {
            key: entry.key_text(),
            found: entry.value_text(),
            wanted: "a number of its own".to_owned(),
        }));
        differences.extend(found.values().filter_map(|entry| {
            let wrong = wrong(map, entry)?;
            Some(Difference { key: entry.key_text(), found: entry.value_text(), wanted: wrong })
        }));
        Verified { map, entries: found.len(), differences }
    });
    verified.collect()
}

/// Maps of which every entry is known beforehand.
fn exact(desired: &Desired) -> BTreeMap<&'static str, Entries> {
    let hosts = desired.identities.iter().filter(|(net, _)| is_host(net));
    let hosts = hosts.map(|(net, identity)| dump::host(&net.addr().into(), identity));
    let lingering =
        desired.lingering.iter().map(|(address, identity)| dump::host(&(*address).into(), identity));
    let mut cidrs: BTreeMap<Cidr, u32> = BTreeMap::new();
    // Always there, so that no IPv6 range holds for IPv4.
    cidrs.insert(Cidr::from(IpNet::V4(ipnet::Ipv4Net::default())), identity::ANY);
    cidrs.extend(
        desired.identities.iter().filter(|(net, _)| !is_host(net)).map(|(net, who)| (Cidr::from(*net), *who)),
    );
    let endpoints =
        desired.endpoints.iter().map(|(ifindex, entry)| dump::endpoint(ifindex, &endpoint_value(entry)));
    let classes = desired.classes.iter().map(|(number, class)| dump::class(number, &class.own));
    let peers = desired.classes.iter().flat_map(|(number, class)| {
        let of = |(identity, sides): (&u32, &Sides)| {
            dump::peer(&PeerKey { class: *number, identity: *identity }, sides)
        };
        class.peers.iter().map(of)
    });
    let rules = desired.rulesets.iter().flat_map(|(set, rules)| {
        let of = |(traffic, value): &_| dump::rule(&RulePrefix { set: *set, traffic: *traffic }, value);
        rules.entries().iter().map(of)
    });
    let netns = desired.netns.keys().map(|cookie| dump::netns(cookie, &Netns { flags: Netns::SIDECAR }));
    let captured = desired.netns.iter().flat_map(|(cookie, entry)| {
        let ports = entry.captured.iter();
        ports.map(|(port, protocol)| dump::captured(&CapturedKey::new(*cookie, *port, *protocol), &1))
    });
    let proxies = desired.proxies.iter();
    let proxies = proxies.map(|(slot, entry)| dump::proxy(&u32::from(*slot), &Proxy::from(entry)));
    let by_key = |entries: Vec<Entry>| entries.into_iter().map(|entry| (entry.key_text(), entry)).collect();
    BTreeMap::from([
        ("HOSTS", by_key(hosts.collect())),
        ("LINGERING", by_key(lingering.collect())),
        ("CIDRS", by_key(cidrs.iter().map(|(cidr, who)| dump::cidr(cidr, who)).collect())),
        ("ENDPOINTS", by_key(endpoints.collect())),
        ("CLASSES", by_key(classes.collect())),
        ("PEERS", by_key(peers.collect())),
        ("RULES", by_key(rules.collect())),
        ("NETNS", by_key(netns.collect())),
        ("CAPTURED", by_key(captured.collect())),
        ("PROXIES", by_key(proxies.collect())),
    ])
}

/// What is known of how the node is set up.
fn set_up(desired: &Desired, around: &Around) -> BTreeMap<&'static str, Entries> {
    let by_key = |entries: Vec<Entry>| entries.into_iter().map(|entry| (entry.key_text(), entry)).collect();
    let is_guarded = desired.endpoints.contains_key(&INTERFACE);
    let mut known = BTreeMap::from([("GUARDED", by_key(vec![dump::guarded(0, &u32::from(is_guarded))]))]);
    if let Some(config) = &around.config {
        known.insert("CONFIG", by_key(vec![dump::config(0, config)]));
    }
    if let Some(hops) = &around.hops {
        let hops = hops.iter().map(|(net, hop)| dump::node(&Cidr::from(*net), hop));
        known.insert("NODES", by_key(hops.collect()));
    }
    if let Some(locals) = &around.locals {
        // By what number each is known, is nobody's business.
        let local =
            |address: &IpAddr| Entry { key: dump::host(&(*address).into(), &0).key, value: Vec::new() };
        known.insert("LOCALS", by_key(locals.iter().map(local).collect()));
    }
    if let Some(control) = &around.control {
        let at = |at: &SocketAddr| SockAddr::new(at.ip().to_canonical().into(), at.port());
        known.insert("CONTROL", by_key(control.iter().map(|told| dump::control(&at(told), &1)).collect()));
    }
    known
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn differences(found: &Entries, wanted: &Entries) -> Vec<Difference> {
    let text = |entry: Option<&Entry>| entry.map_or(NOTHING.to_owned(), Entry::value_text);
    let keys: BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
    let of = |key: &&String| {
        let (found, wanted) = (found.get(*key), wanted.get(*key));
        found.map(|entry| &entry.value) != wanted.map(|entry| &entry.value)
    };
    let differs = keys.into_iter().filter(of);
    differs
        .map(|key| Difference {
            key: key.clone(),
            found: text(found.get(key)),
            wanted: text(wanted.get(key)),
        })
        .collect()
}

/// Why an entry can't be right, whatever its numbers are.
fn wrong(map: &str, entry: &Entry) -> Option<String> {
    let key = |name: &str| field(&entry.key, name);
    let value = |name: &str| field(&entry.value, name);
    let is_flag = |name: &str| value(name).as_u64().is_some_and(|flag| flag <= 1);
    let says = |holds: bool, sentence: &str| (!holds).then(|| sentence.to_owned());
    match map {
        "FORMAT" => says(value("format") == limits::FORMAT, "the format of this release"),
        "LOCALS" => {
            let number = value("number").as_u64().unwrap_or(0);
            says((1..=u64::from(u16::MAX)).contains(&number), "a number from 1 to 65535")
        }
        "CONNTRACK" => {
            let flags = ["answered", "closed_forward", "closed_reply", "midstream"];
            let holds =
                flags.into_iter().all(is_flag) && key("began").is_string() && value("cut").is_string();
            says(holds, "nothing that a program writes")
        }
        "REVERSE" => {
            let family = |value: &Value| plain(value).starts_with('[');
            let holds = key("socket") != 0 && family(&key("backend")) == family(&value("service"));
            says(holds, "nothing that a program writes")
        }
        _ => None,
    }
}

/// What is to be there of services, by their addresses instead of their numbers.
fn services(desired: &Desired) -> BTreeMap<&'static str, Entries> {
    let [mut services, mut backends, mut sources, mut answerers] = [const { Entries::new() }; 4];
    let put = |entries: &mut Entries, key: dump::Fields, value: dump::Fields| {
        let entry = Entry { key, value };
        entries.insert(entry.key_text(), entry);
    };
    for (frontend, service) in &desired.services {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = service_flags(service);
        let name = format!("{}/{}/{}", frontend.socket(), frontend.protocol, frontend.scope.number());
        let value = vec![
            ("affinity_seconds", json!(service.affinity_seconds)),
            ("flags", json!(flags)),
            ("proxy_port", json!(service.proxy_port)),
            ("redirect", json!(service.redirect)),
        ];
        put(&mut services, vec![("service", json!(name))], value);
        for (at, served) in &service.backends {
            let flags = flag(served.chosen, Backend::CHOSEN) | flag(served.here, Backend::HERE);
            let key = vec![("service", json!(name)), ("backend", json!(at.to_string()))];
            if service.direct && served.here {
                put(&mut answerers, key.clone(), Vec::new());
            }
            put(&mut backends, key, vec![("weight", json!(served.weight)), ("flags", json!(flags))]);
        }
        for net in &service.sources {
            let key = vec![("service", json!(name)), ("from", json!(net.to_string()))];
            put(&mut sources, key, Vec::new());
        }
    }
    BTreeMap::from([
        ("SERVICES", services),
        ("BACKENDS", backends),
        ("SOURCES", sources),
        ("ANSWERERS", answerers),
    ])
}

/// The addresses of services, by their numbers.
fn names(maps: &BTreeMap<&'static str, Entries>) -> BTreeMap<String, String> {
    let services = maps.get("SERVICES").into_iter().flat_map(BTreeMap::values);
    services.map(|entry| (plain(&field(&entry.value, "id")), service_name(entry))).collect()
}

fn service_name(entry: &Entry) -> String {
    let part = |name| plain(&field(&entry.key, name));
    format!("{}/{}/{}", part("service"), part("protocol"), part("scope"))
}

/// The entries with the numbers of services replaced by what they stand for, as in [`services`].
fn named(map: &str, found: &Entries, names: &BTreeMap<String, String>) -> Entries {
    let pick = |from: &dump::Fields, wanted: &[&'static str]| -> dump::Fields {
        wanted.iter().map(|name| (*name, field(from, name))).collect()
    };
    let owner = |id: &Value| {
        let id = plain(id);
        ("service", json!(names.get(&id).cloned().unwrap_or_else(|| format!("number {id}, which is none"))))
    };
    let one = |entry: &Entry| match map {
        "SERVICES" => Entry {
            key: vec![("service", json!(service_name(entry)))],
            value: pick(&entry.value, &["affinity_seconds", "flags", "proxy_port", "redirect"]),
        },
        "BACKENDS" => Entry {
            key: vec![owner(&field(&entry.value, "service_id")), ("backend", field(&entry.value, "backend"))],
            value: pick(&entry.value, &["weight", "flags"]),
        },
        "LOCALS" => Entry { key: entry.key.clone(), value: Vec::new() },
        "ANSWERERS" => Entry {
            key: vec![owner(&field(&entry.key, "service_id")), ("backend", field(&entry.key, "backend"))],
            value: Vec::new(),
        },
        "SOURCES" => Entry {
            key: vec![owner(&field(&entry.key, "service_id")), ("from", field(&entry.key, "from"))],
            value: Vec::new(),
        },
        _ => entry.clone(),
    };
    let mut entries = Entries::new();
    for entry in found.values().map(one) {
        let mut key = entry.key_text();
        // Two numbers for one thing: one of them is too many.
        while entries.contains_key(&key) {
            key.push_str(", once more");
        }
        entries.insert(key, entry);
    }
    entries
}

fn field(fields: &dump::Fields, name: &str) -> Value {
    fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()).unwrap_or_default()
}

/// How full the maps are that the agent writes: name, entries, the most that fit. PURE.
pub fn fill(desired: &Desired) -> Vec<(&'static str, usize, u32)> {
    let hosts = desired.identities.keys().filter(|net| is_host(net)).count();
    let backends = desired.services.values().map(|service| service.backends.len()).sum();
    let captured = desired.netns.values().map(|entry| entry.captured.len()).sum();
    vec![
        ("BACKENDS", backends, limits::BACKENDS),
        ("CAPTURED", captured, limits::CAPTURED),
        ("CIDRS", desired.identities.len() - hosts, limits::CIDRS),
        ("CLASSES", desired.classes.len(), limits::CLASSES),
        ("ENDPOINTS", desired.endpoints.len(), limits::ENDPOINTS),
        ("HOSTS", hosts, limits::HOSTS),
        ("LINGERING", desired.lingering.len(), limits::LINGERING),
        ("NETNS", desired.netns.len(), limits::NETNS),
        ("PEERS", desired.classes.values().map(|class| class.peers.len()).sum(), limits::PEERS),
        ("PROXIES", desired.proxies.len(), limits::PROXIES),
        ("RULES", desired.rulesets.values().map(|set| set.entries().len()).sum(), limits::RULES),
        ("SERVICES", desired.services.len(), limits::SERVICES),
        ("SOURCES", desired.services.values().map(|service| service.sources.len()).sum(), limits::SOURCES),
    ]
}
