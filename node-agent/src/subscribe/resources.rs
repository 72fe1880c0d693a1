//! The agent's resources as plain, checked values. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use ebpf_shared::Direction;
use ipnet::IpNet;
use mesh_model::{
    identity::{SpiffeId, TrustDomain},
    policy::NamePattern,
    records::Tunnel,
    resource::NamespacedName,
};
use mesh_tls::jwt::JwtPublicKey;
use xds_client::Update;
use xds_proto::{isthmus::agent::v1 as wire, type_url};

use super::parse::{self, ParseError};
use super::services::{self, HostPort, Service};
use crate::desired::Pod;

/// Every type that the agent subscribes to, in the order in which the streams are to be opened: what
/// endpoints refer to comes before them.
pub static TYPES: LazyLock<[String; 7]> = LazyLock::new(|| {
    [
        type_url::<wire::TrustBundle>(),
        type_url::<wire::Node>(),
        type_url::<wire::WorkloadAddress>(),
        type_url::<wire::PolicyClass>(),
        type_url::<wire::Service>(),
        type_url::<wire::LocalEndpoint>(),
        type_url::<wire::HostEndpoint>(),
    ]
});

/// A workload somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Address {
    pub addresses: Vec<IpAddr>,
    pub identity: u32,
}

/// A workload that runs here, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Local {
    pub identity: u32,
    pub spiffe_id: SpiffeId,
    /// Number of the [`Class`] in the control plane's count.
    pub class: u32,
    /// Port and IP protocol number.
    pub captured: BTreeSet<(u16, u8)>,
    pub sidecar: bool,
    /// What policy denies is told of, and passes.
    pub audit: bool,
    /// Of this node, that lead to it.
    pub host_ports: Vec<HostPort>,
    /// `None`: it is ready as soon as it is there.
    pub readiness: Option<Readiness>,
}

/// This node itself, while a policy selects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Host {
    /// Number of the [`Class`] in the control plane's count.
    pub class: u32,
    /// What policy denies is told of, and passes.
    pub audit: bool,
}

/// How a workload is asked whether it takes traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Readiness {
    pub asked: Asked,
    pub port: u16,
    /// Between two probes.
    pub period: Duration,
    /// In a row, after which it is not ready.
    pub failures: u32,
}

/// What counts as an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The connection is accepted.
    Tcp,
    /// A GET of this path is answered with 200 to 399.
    Http(String),
}

/// A policy that endpoints share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
#[allow(missing_docs)]
pub struct Class {
    /// Provenance of the default deny, if there is one.
    pub deny_ingress: Option<String>,
    pub deny_egress: Option<String>,
    /// That of the default denies that only audited policies ask for.
    pub audit_ingress: Option<String>,
    pub audit_egress: Option<String>,
    pub rules: Vec<Rule>,
}

/// One rule of a [`Class`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Rule {
    pub direction: Direction,
    pub allow: bool,
    /// Of an audited policy: enforces nothing.
    pub audit: bool,
    pub peer: Peer,
    /// IP protocol number; 0: any.
    pub protocol: u8,
    /// Inclusive; of ICMP, `type << 8 | code`. `None`: any.
    pub ports: Option<(u16, u16)>,
    /// Of a rule that allows: only what a proxy admits.
    pub l7: Option<L7>,
    pub provenance: String,
}

/// What a proxy admits of the traffic of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum L7 {
    /// Names that may be asked for: the DNS proxy of this node.
    Dns(Vec<NamePattern>),
    /// The proxy that registers by this name judges for itself.
    Proxy(String),
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Peer {
    Any,
    Identity(u32),
    /// Any of them.
    Identities(Box<[u32]>),
    /// An address outside the mesh.
    Cidr(IpNet),
    /// An address outside the mesh, in any of them.
    Cidrs(Box<[IpNet]>),
    Entity(Entity),
    /// Addresses outside the mesh that DNS has told a pod of this node for such a name.
    Name(NamePattern),
    /// IPv4 addresses written as IPv6, which no packet has: never matches.
    Nobody,
}

/// Peers that are no list of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// Addresses outside the mesh that are no node's.
    World,
    /// The endpoint's own node.
    Host,
    /// Every other node of the cluster.
    RemoteNode,
    /// What asks after the health of workloads.
    Health,
    /// Addresses of pods that nobody is known to have.
    Unmanaged,
    /// Every workload of the mesh.
    Workloads,
}

/// Another node, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NodeRoute {
    pub address: Ipv4Addr,
    /// The way to its pods of IPv6.
    pub address6: Option<Ipv6Addr>,
    pub pod_cidrs: Vec<IpNet>,
    /// All that it has told, if it has.
    pub addresses: Vec<IpAddr>,
    /// Empty: not known.
    pub zone: String,
    /// Whether its agent has a tunnel; None: it has not said.
    pub tunnel: Option<Tunnel>,
}

impl NodeRoute {
    /// Whether packets go to it through the tunnel, from a node that has one. While a cluster changes from one way to the
    /// other, those that have none yet are reached by routes.
    pub fn has_tunnel(&self) -> bool {
        self.tunnel != Some(Tunnel::Direct)
    }

    /// Every address that is known of it.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ways = [Some(IpAddr::V4(self.address)), self.address6.map(IpAddr::V6)];
        ways.into_iter().flatten().chain(self.addresses.iter().copied())
    }
}

/// The roots of a trust domain, and what belongs to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// DER.
    pub roots: Vec<Vec<u8>>,
    /// Goes up whenever the roots change; unique among all domains.
    pub generation: u64,
    /// Of the own domain: SHA-256 of the root that leaves are to chain to.
    pub active_root: String,
    /// Registrations of nodes whose certificates are refused.
    pub revoked: BTreeSet<u64>,
    /// That JWT-SVIDs are verified with.
    pub jwt_keys: Vec<JwtPublicKey>,
}

impl Bundle {
    /// Whether a chain of leaf and issuer leads to the root that it should.
    pub fn is_active(&self, chain: &[mesh_tls::CertificateDer<'_>]) -> bool {
        let roots: Vec<_> = self.roots.iter().cloned().map(mesh_tls::CertificateDer::from).collect();
        let root = mesh_tls::root_of(chain, &roots)
            .map(|root| crate::bootstrap::hex::encode(&mesh_tls::fingerprint(root)));
        self.active_root.is_empty() || root.as_ref() == Some(&self.active_root)
    }
}

/// What an update may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// With the addresses that each had before.
    pub addresses: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
    /// Classes of the control plane's.
    pub classes: BTreeSet<u32>,
    /// Workloads of this node.
    pub locals: BTreeSet<NamespacedName>,
    /// Pods of this node that came or went, as they were before.
    pub pods: BTreeMap<NamespacedName, Option<Pod>>,
    /// Whose names in DNS changed.
    pub names: BTreeSet<IpAddr>,
    /// The node itself.
    pub host: bool,
    /// Services, as they were before.
    pub services: BTreeMap<NamespacedName, Option<Arc<Service>>>,
    /// Any service, for another reason.
    pub all_services: bool,
    /// Any node.
    pub nodes: bool,
}

impl Touched {
    /// Adds what another update has touched since.
    pub fn extend(&mut self, later: Self) {
        for (name, before) in later.addresses {
            self.addresses.entry(name).or_insert(before);
        }
        for (name, before) in later.pods {
            self.pods.entry(name).or_insert(before);
        }
        self.classes.extend(later.classes);
        self.locals.extend(later.locals);
        self.names.extend(later.names);
        self.host |= later.host;
        for (name, before) in later.services {
            self.services.entry(name).or_insert(before);
        }
        self.all_services |= later.all_services;
        self.nodes |= later.nodes;
    }
}

/// Everything that the control plane told, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Resources {
    pub addresses: BTreeMap<NamespacedName, Address>,
    /// Service accounts, by identity: for the names of flows only.
    pub accounts: BTreeMap<u32, String>,
    pub locals: BTreeMap<NamespacedName, Local>,
    /// By node: only this one is told of.
    pub hosts: BTreeMap<String, Host>,
    pub classes: BTreeMap<u32, Class>,
    /// (Shared, so that who has looked before sees at once which are the same.)
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    pub bundles: BTreeMap<TrustDomain, Bundle>,
    pub nodes: BTreeMap<String, NodeRoute>,
    /// Ports of this node that the container runtime wants to lead to pods here. (The control plane knows nothing of
    /// them: what it tells is in [`Local::host_ports`].)
    pub host_ports: BTreeMap<NamespacedName, Vec<HostPort>>,
    /// Classes that the control plane took back while an endpoint here still named them. They stay until no
    /// one does: types arrive one after the other, and an endpoint must not be without policy in between.
    retired: BTreeMap<u32, Class>,
    /// Type URLs of which anything was told since the agent started, by its cache or by the control plane.
    heard: BTreeSet<String>,
}

impl Resources {
    /// Takes an update as a whole, or, when anything in it is wrong, not at all. Says what it touches.
    ///
    /// # Errors
    /// Names the resource, the field and the value: the text of the NACK.
    pub fn apply(&mut self, update: &Update) -> Result<Touched, ParseError> {
        let mut touched = Touched::default();
        let url = update.type_url.as_str();
        let is = |known: &str| url == known;
        if is(&type_url::<wire::WorkloadAddress>()) {
            let before = merge(&mut self.addresses, update, parse::name, parse::address)?;
            touched.addresses = before
                .into_iter()
                .map(|(name, before)| (name, before.into_iter().flat_map(|each| each.addresses).collect()))
                .collect();
            self.note_accounts(update);
        } else if is(&type_url::<wire::LocalEndpoint>()) {
            touched.locals =
                merge(&mut self.locals, update, parse::name, parse::local)?.into_keys().collect();
        } else if is(&type_url::<wire::HostEndpoint>()) {
            merge(&mut self.hosts, update, parse::node_name, parse::host)?;
            touched.host = true;
        } else if is(&type_url::<wire::PolicyClass>()) {
            let before = merge(&mut self.classes, update, parse::class_number, parse::class)?;
            touched.classes = before.keys().copied().collect();
            for (number, class) in before {
                if let Some(class) = class.filter(|_| !self.classes.contains_key(&number)) {
                    self.retired.insert(number, class);
                }
            }
        } else if is(&type_url::<wire::Service>()) {
            let shared = |name: &str, told| services::service(name, told).map(Arc::new);
            touched.services = merge(&mut self.services, update, parse::name, shared)?;
        } else if is(&type_url::<wire::TrustBundle>()) {
            merge(&mut self.bundles, update, parse::trust_domain, parse::bundle)?;
        } else if is(&type_url::<wire::Node>()) {
            merge(&mut self.nodes, update, parse::node_name, parse::node)?;
            touched.nodes = true;
        } else {
            return Err(ParseError::UnknownType(update.type_url.clone()));
        }
        self.forget_retired();
        self.heard.insert(update.type_url.clone());
        Ok(touched)
    }

    /// Of the addresses that have just been taken. One that can't be read has no name.
    fn note_accounts(&mut self, update: &Update) {
        for resource in &update.added {
            let Ok(address) = resource.decode::<wire::WorkloadAddress>() else { continue };
            let account = address.spiffe_id.rsplit_once("/sa/").map_or("", |(_, account)| account);
            if !account.is_empty()
                && self.accounts.get(&address.identity).is_none_or(|known| known != account)
            {
                self.accounts.insert(address.identity, account.to_owned());
            }
        }
        if self.accounts.len() > self.addresses.len() {
            let used: BTreeSet<u32> = self.addresses.values().map(|address| address.identity).collect();
            self.accounts.retain(|identity, _| used.contains(identity));
        }
    }

    /// This node itself, while a policy selects it.
    pub fn host(&self) -> Option<&Host> {
        self.hosts.values().next()
    }

    /// Classes that an endpoint of this node is to have.
    pub fn classes_in_use(&self) -> BTreeSet<u32> {
        let locals = self.locals.values().map(|local| local.class);
        locals.chain(self.host().map(|host| host.class)).collect()
    }

    /// A class that is in force, or was until the control plane took it back.
    pub fn class(&self, number: u32) -> Option<&Class> {
        self.classes.get(&number).or_else(|| self.retired.get(&number))
    }

    /// Whether anything was told of a type yet. Until then, what an agent before this one left in the kernel about it
    /// is not to be touched.
    pub fn heard<M: xds_proto::Name>(&self) -> bool {
        self.heard.contains(&M::type_url())
    }

    #[cfg(test)]
    pub(crate) fn hear<M: xds_proto::Name>(&mut self) {
        self.heard.insert(M::type_url());
    }

    fn forget_retired(&mut self) {
        let named = self.classes_in_use();
        let classes = &self.classes;
        self.retired.retain(|number, _| named.contains(number) && !classes.contains_key(number));
    }
}

/// Parses everything before it changes anything. Returns what was there before under each name.
fn merge<K: Ord + Clone, V, M: xds_proto::Message + xds_proto::Name + Default>(
    table: &mut BTreeMap<K, V>,
    update: &Update,
    key: impl Fn(&str) -> Result<K, ParseError>,
    value: impl Fn(&str, M) -> Result<V, ParseError>,
) -> Result<BTreeMap<K, Option<V>>, ParseError> {
    let mut added = Vec::with_capacity(update.added.len());
    for resource in &update.added {
        added.push((key(&resource.name)?, value(&resource.name, resource.decode::<M>()?)?));
    }
    let mut before: BTreeMap<K, Option<V>> = BTreeMap::new();
    for (key, value) in added {
        let was = table.insert(key.clone(), value);
        before.entry(key).or_insert(was);
    }
    for name in &update.removed {
        // A name that can't be parsed was never taken in.
        if let Ok(key) = key(name) {
            let was = table.remove(&key);
            before.entry(key).or_insert(was);
        }
    }
    Ok(before)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use xds_client::Resource;

    pub(crate) fn update<M: xds_proto::Name>(added: &[(&str, M)], removed: &[&str]) -> Update {
        Update {
            type_url: M::type_url(),
            added: added
                .iter()
                .map(|(name, message)| Resource {
                    name: (*name).into(),
                    version: "1".into(),
                    resource: xds_proto::to_any(message),
                })
                .collect(),
            removed: removed.iter().map(|name| (*name).into()).collect(),
            nonce: "n".into(),
            system_version: "1".into(),
        }
    }

    pub(crate) fn local(class: u32) -> wire::LocalEndpoint {
        wire::LocalEndpoint {
            name: "shop/pay".into(),
            identity: 300,
            spiffe_id: "spiffe://west.example/ns/shop/sa/pay".into(),
            policy_class: class,
            captured_ports: vec![wire::CapturedPort { port: 8080, protocol: wire::Protocol::Tcp as i32 }],
            sidecar: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_class_that_is_taken_back_stays_while_an_endpoint_names_it() {
        let mut resources = Resources::default();
        resources.apply(&update(&[("7", wire::PolicyClass { id: 7, ..Default::default() })], &[])).unwrap();
        resources.apply(&update(&[("shop/pay", local(7))], &[])).unwrap();
        resources.apply(&update::<wire::PolicyClass>(&[], &["7"])).unwrap();
        assert!(resources.classes.is_empty());
        assert!(resources.class(7).is_some());
        resources.apply(&update(&[("shop/pay", local(8))], &[])).unwrap();
        assert!(resources.class(7).is_none());
    }

    #[test]
    fn an_update_with_one_bad_resource_changes_nothing() {
        let mut resources = Resources::default();
        let good = wire::WorkloadAddress {
            name: "a/b".into(),
            addresses: vec!["10.1.0.2".into()],
            identity: 256,
            ..Default::default()
        };
        let bad = wire::WorkloadAddress { identity: 1 << 24, ..good.clone() };
        let error = resources.apply(&update(&[("a/b", good), ("a/c", bad)], &[])).unwrap_err();
        assert_eq!(resources, Resources::default());
        let text = error.to_string();
        assert!(text.contains("a/c") && text.contains("identity") && text.contains("16777216"), "{text}");
    }

    #[test]
    fn a_rule_whose_peer_cannot_be_read_is_refused_not_widened() {
        let class =
            |rule: wire::PolicyRule| wire::PolicyClass { id: 1, rules: vec![rule], ..Default::default() };
        for rule in [
            wire::PolicyRule { cidr: "10.0.0.0/40".into(), ..Default::default() },
            wire::PolicyRule { cidr: "10.0.0.0/8".into(), identity: 300, ..Default::default() },
            wire::PolicyRule { protocol: 255, ..Default::default() },
            wire::PolicyRule { port: 70_000, ..Default::default() },
            wire::PolicyRule { port: 80, end_port: 79, ..Default::default() },
            wire::PolicyRule { direction: 9, ..Default::default() },
            wire::PolicyRule { action: 9, ..Default::default() },
            // Several peers: only of the actions that say so, of one kind, and never none.
            wire::PolicyRule { action: 1, identities: vec![300], ..Default::default() },
            wire::PolicyRule { action: 3, cidrs: vec!["10.0.0.0/8".into()], ..Default::default() },
            wire::PolicyRule { action: 5, ..Default::default() },
            wire::PolicyRule { action: 5, identity: 300, identities: vec![301], ..Default::default() },
            wire::PolicyRule { action: 5, entity: 1, identities: vec![301], ..Default::default() },
            wire::PolicyRule {
                action: 5,
                identities: vec![300],
                cidrs: vec!["10.0.0.0/8".into()],
                ..Default::default()
            },
            wire::PolicyRule { action: 4, identities: vec![300, 5], ..Default::default() },
            wire::PolicyRule {
                action: 4,
                cidrs: vec!["10.0.0.0/8".into(), "x".into()],
                ..Default::default()
            },
            wire::PolicyRule { entity: 4, action: 3, ..Default::default() },
        ] {
            let mut resources = Resources::default();
            assert!(resources.apply(&update(&[("1", class(rule.clone()))], &[])).is_err(), "{rule:?}");
        }
    }

    #[test]
    fn a_class_is_refused_for_its_size_by_its_rules_for_each_peer_and_by_its_peers() {
        use mesh_model::limits::{MAX_CLASS_PEERS, MAX_CLASS_RULES};
        let most = u32::try_from(MAX_CLASS_PEERS).unwrap();
        let group = |count: u32, port| wire::PolicyRule {
            action: 5,
            identities: (300..300 + count).collect(),
            protocol: 6,
            port,
            ..Default::default()
        };
        let read = |rules: Vec<wire::PolicyRule>| {
            let class = wire::PolicyClass { id: 1, rules, ..Default::default() };
            Resources::default().apply(&update(&[("1", class)], &[])).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(read(vec![group(most, 80), group(most, 443)]), Ok(()));
        let rules = read(vec![group(most, 80), group(most, 443), group(1, 53)]).unwrap_err();
        assert!(
            rules.contains("rules has 524289") && rules.contains(&MAX_CLASS_RULES.to_string()),
            "{rules}"
        );
        let peers = read(vec![group(most + 3, 80)]).unwrap_err();
        assert!(peers.contains("peers of rules has 262147"), "{peers}");
    }

    #[test]
    fn a_nodes_kernel_has_room_for_what_the_control_plane_believes() {
        use mesh_model::limits::{MAX_CLASS_PEERS, MAX_NODE_PEERS};
        assert_eq!(MAX_NODE_PEERS, ebpf_shared::limits::PEERS as usize);
        // A class lives beside its successor for a moment.
        const { assert!(2 * MAX_CLASS_PEERS <= MAX_NODE_PEERS) };
    }

    fn class_of(rule: wire::PolicyRule) -> wire::PolicyClass {
        wire::PolicyClass { id: 1, rules: vec![rule], ..Default::default() }
    }

    #[test]
    fn a_cidr_of_either_family_is_taken_as_it_is_and_one_in_disguise_matches_nobody() {
        for (text, peer) in [
            ("192.0.2.7/24", Peer::Cidr("192.0.2.0/24".parse().unwrap())),
            ("2001:db8::7/32", Peer::Cidr("2001:db8::/32".parse().unwrap())),
            ("::/0", Peer::Cidr("::/0".parse().unwrap())),
            ("::ffff:10.0.0.0/104", Peer::Nobody),
        ] {
            let rule = wire::PolicyRule { cidr: text.into(), action: 1, ..Default::default() };
            let mut resources = Resources::default();
            resources.apply(&update(&[("1", class_of(rule))], &[])).unwrap();
            assert_eq!(resources.classes[&1].rules[0].peer, peer, "{text}");
        }
    }

    #[test]
    fn addresses_and_pod_ranges_of_both_families_are_taken() {
        let mut resources = Resources::default();
        let web = wire::WorkloadAddress {
            addresses: vec!["10.1.0.2".into(), "fd00:1::2".into(), "::ffff:10.1.0.3".into()],
            identity: 256,
            ..Default::default()
        };
        resources.apply(&update(&[("a/b", web)], &[])).unwrap();
        let told: Vec<_> =
            resources.addresses.values().flat_map(|each| &each.addresses).map(ToString::to_string).collect();
        assert_eq!(told, ["10.1.0.2", "fd00:1::2", "10.1.0.3"]);
        let node = |cidr: &str| wire::Node {
            name: "n1".into(),
            address: "192.0.2.1".into(),
            address6: "2001:db8::1".into(),
            pod_cidrs: vec!["10.1.1.0/24".into(), cidr.into()],
            ..Default::default()
        };
        resources.apply(&update(&[("n1", node("fd00:1::/64"))], &[])).unwrap();
        assert_eq!(resources.nodes["n1"].pod_cidrs.len(), 2);
        for wide in ["fd00::/16", "::ffff:10.0.0.0/104", "0.0.0.0/0"] {
            assert!(resources.apply(&update(&[("n1", node(wide))], &[])).is_err(), "{wide}");
        }
    }
}
