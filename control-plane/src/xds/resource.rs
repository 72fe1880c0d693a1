//! Resources as they go over the wire: encoded once, then shared by every stream that sends them.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};
use sha2::{Digest, Sha256};
use xds_proto::{
    Message, Name,
    envoy::{
        config::{
            cluster::v3::Cluster,
            listener::v3::{Filter, Listener, filter::ConfigType},
            route::v3::VirtualHost,
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
    },
    google::protobuf::Any,
    to_any,
};

use super::kinds;

/// One resource, ready to be sent.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Unique within its type.
    pub name: Arc<str>,
    /// Hash of the contents: equal on every replica, so a client that moves between replicas is not sent again what it has.
    pub version: Arc<str>,
    /// The message, packed.
    pub any: Any,
    /// Names of the resources that the client must get after this one changed: see [`kinds::Kind::warms`].
    pub references: Vec<Arc<str>>,
    /// Other names that it is asked for by: see [`kinds::Kind::aliases`].
    pub aliases: Vec<Arc<str>>,
    /// How long it is valid at a client that hears no more of it. The session prolongs it in time, so that it outlives
    /// the stream by no more than this.
    pub ttl: Option<Duration>,
}

/// The version stands for the contents.
impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name
    }
}

// With it, comparing two `Arc`s of the same resource costs a comparison of pointers.
impl Eq for Encoded {}

impl Encoded {
    /// Encodes a message.
    ///
    /// Protobuf maps are encoded in no particular order, so a message whose maps have more than one entry may get
    /// another version each time it is encoded: translate to one entry, or to repeated fields.
    pub fn new<M: Name>(name: impl Into<Arc<str>>, message: &M) -> Self {
        Self::from_any(name, to_any(message))
    }

    /// Takes a message that is packed already.
    pub fn from_any(name: impl Into<Arc<str>>, any: Any) -> Self {
        let name = name.into();
        let references = references(&name, &any);
        let aliases = aliases(&name, &any);
        Self { version: version(&any.value, None), name, any, references, aliases, ttl: None }
    }

    /// The same, for a limited time. Another time makes another version: the client has to be told.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.version = version(&self.any.value, Some(ttl));
        self.ttl = Some(ttl);
        self
    }

    /// Bytes that it takes in a response, give or take the framing.
    pub fn wire_size(&self) -> usize {
        self.any.value.len() + self.any.type_url.len() + self.name.len() + self.version.len()
    }
}

/// 64 bits of SHA-256, in hexadecimal: enough to tell successive contents of one name apart.
fn version(contents: &[u8], ttl: Option<Duration>) -> Arc<str> {
    let mut hash = Sha256::new_with_prefix(contents);
    if let Some(ttl) = ttl {
        hash.update(ttl.as_nanos().to_be_bytes());
    }
    let digest = hash.finalize();
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// What a cluster or a listener makes its client ask for. A message that does not decode refers to nothing: it
/// is the client's to refuse.
fn references(name: &Arc<str>, any: &Any) -> Vec<Arc<str>> {
    match any.type_url.as_str() {
        kinds::CLUSTER => {
            let Ok(cluster) = Cluster::decode(any.value.as_slice()) else { return Vec::new() };
            cluster
                .eds_cluster_config
                .map(|eds| if eds.service_name.is_empty() { name.clone() } else { eds.service_name.into() })
                .into_iter()
                .collect()
        }
        kinds::LISTENER => {
            let Ok(listener) = Listener::decode(any.value.as_slice()) else { return Vec::new() };
            let api = listener.api_listener.and_then(|api| api.api_listener);
            let chains = listener.filter_chains.into_iter().chain(listener.default_filter_chain);
            let mut names: Vec<Arc<str>> = chains
                .flat_map(|chain| chain.filters)
                .filter_map(|Filter { config_type, .. }| match config_type {
                    Some(ConfigType::TypedConfig(any)) => Some(any),
                    _ => None,
                })
                .chain(api)
                .filter_map(|any| route_config_name(&any))
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        }
        _ => Vec::new(),
    }
}

/// A virtual host is asked for by the name of its route configuration and any authority that it serves.
fn aliases(name: &Arc<str>, any: &Any) -> Vec<Arc<str>> {
    if any.type_url != kinds::VIRTUAL_HOST {
        return Vec::new();
    }
    let Some((route, _)) = name.rsplit_once('/') else { return Vec::new() };
    let Ok(host) = VirtualHost::decode(any.value.as_slice()) else { return Vec::new() };
    let asked = host.domains.iter().map(|domain| Arc::from(format!("{route}/{domain}")));
    asked.filter(|alias| alias != name).collect()
}

fn route_config_name(filter: &Any) -> Option<Arc<str>> {
    if filter.type_url != HttpConnectionManager::type_url() {
        return None;
    }
    match HttpConnectionManager::decode(filter.value.as_slice()).ok()?.route_specifier? {
        RouteSpecifier::Rds(rds) => Some(rds.route_config_name.into()),
        _ => None,
    }
}

/// The resources of one type, by name: a persistent map. A clone costs nothing and shares everything; a change costs
/// a path through the tree; what differs between two of one descent is found without looking at what they share.
pub type TypeResources = OrdMap<Arc<str>, Arc<Encoded>>;

/// Everything that one client is to have at a revision.
///
/// Types that did not change should share their map with the set before ([`share_with`](Self::share_with), or
/// by being a clone of it): a session skips them at the cost of one pointer comparison.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    /// The revision of the state that it was made from.
    pub revision: u64,
    types: Types,
    /// What the client gets only if it asks for it by name.
    named: Types,
    /// Other names of resources, with the names that they have. Made when somebody asks.
    aliases: OnceLock<Arc<Aliases>>,
}

/// Names of resources by the names that they are asked for by.
type Aliases = BTreeMap<Arc<str>, Arc<str>>;
/// Longest authority that is looked up with wildcards.
const MAX_AUTHORITY_BYTES: usize = 512;

impl PartialEq for ResourceSet {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && self.types == other.types && self.named == other.named
    }
}

impl ResourceSet {
    /// Nothing, at a revision.
    pub fn new(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Adds a resource or replaces the one of that type and name.
    pub fn insert(&mut self, resource: impl Into<Arc<Encoded>>) {
        self.aliases = OnceLock::new();
        insert(&mut self.types, resource.into());
    }

    /// Adds a resource that the client gets only if it asks for it by name: it may have it, but its wildcard does not
    /// cover it (on-demand CDS, RDS and VHDS).
    pub fn insert_named(&mut self, resource: impl Into<Arc<Encoded>>) {
        self.aliases = OnceLock::new();
        insert(&mut self.named, resource.into());
    }

    /// Adds a resource or replaces the one of that type and name, unless that is equal: then the map stays the
    /// very same.
    pub fn put(&mut self, resource: impl Into<Arc<Encoded>>) {
        let resource = resource.into();
        if self.get(&resource.any.type_url, &resource.name) != Some(&resource) {
            self.insert(resource);
        }
    }

    /// Puts a whole type in place, shared with other sets. An empty one is left out.
    pub fn insert_type(&mut self, type_url: &str, resources: TypeResources) {
        self.aliases = OnceLock::new();
        if resources.is_empty() {
            self.types.remove(type_url);
        } else {
            self.types.insert(kinds::interned(type_url), resources);
        }
    }

    /// The same for what is to be had by name only: see [`insert_named`](Self::insert_named).
    pub fn insert_named_type(&mut self, type_url: &str, resources: TypeResources) {
        self.aliases = OnceLock::new();
        self.named.insert(kinds::interned(type_url), resources);
    }

    /// What there is by name only is from now on what another set has for everybody, of these types.
    pub fn name_types_of(&mut self, other: &Self, types: &[&str]) {
        self.aliases = OnceLock::new();
        let there = types.iter().filter_map(|type_url| other.types.get_key_value(*type_url));
        self.named = there.map(|(type_url, resources)| (type_url.clone(), resources.clone())).collect();
    }

    /// The same, from what that set has by name only.
    pub fn name_same_as(&mut self, other: &Self) {
        self.aliases = OnceLock::new();
        self.named.clone_from(&other.named);
    }

    /// Takes a resource out.
    pub fn remove(&mut self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        self.aliases = OnceLock::new();
        let of_type = self.types.get_mut(type_url)?;
        // A removal of nothing would still copy the path to where it would be.
        let there = of_type.contains_key(name);
        let removed = if there { of_type.remove(name) } else { None };
        if of_type.is_empty() {
            self.types.remove(type_url);
        }
        removed
    }

    /// All of a type.
    pub fn of(&self, type_url: &str) -> Option<&TypeResources> {
        self.types.get(type_url)
    }

    /// All of a type that is to be had by name only.
    pub fn named(&self, type_url: &str) -> Option<&TypeResources> {
        self.named.get(type_url)
    }

    /// One resource.
    pub fn get(&self, type_url: &str, name: &str) -> Option<&Arc<Encoded>> {
        self.of(type_url)?.get(name)
    }

    /// The name of the virtual host that serves what is asked for as `<route configuration>/<authority>`: by its own
    /// name, by one of its domains, or by the wildcard among them that Envoy would choose.
    pub fn resolve(&self, asked: &str) -> Option<&Arc<str>> {
        let own =
            |types: &'_ Types| types.get(kinds::VIRTUAL_HOST).is_some_and(|hosts| hosts.contains_key(asked));
        let aliases = self.aliases.get_or_init(|| {
            let hosts = [&self.types, &self.named].map(|types| types.get(kinds::VIRTUAL_HOST));
            let hosts = hosts.into_iter().flatten().flat_map(|hosts| hosts.values());
            let names = |host: &Arc<Encoded>| {
                let name = host.name.clone();
                let all = host.aliases.iter().chain([&host.name]);
                all.map(|alias| (alias.clone(), name.clone())).collect::<Vec<_>>()
            };
            // The client's own view goes before what it gets by name only.
            let all: Vec<_> = hosts.flat_map(names).collect();
            Arc::new(all.into_iter().rev().collect())
        });
        if own(&self.types) || own(&self.named) {
            return aliases.get_key_value(asked).map(|(name, _)| name);
        }
        let exact = aliases.get(asked);
        let (route, authority) = asked.rsplit_once('/')?;
        if exact.is_some() || authority.len() > MAX_AUTHORITY_BYTES {
            return exact;
        }
        let places = || (1..authority.len()).filter(|at| authority.is_char_boundary(*at));
        let suffix = places().find_map(|at| aliases.get(format!("{route}/*{}", &authority[at..]).as_str()));
        let prefix =
            || places().rev().find_map(|at| aliases.get(format!("{route}/{}*", &authority[..at]).as_str()));
        suffix.or_else(prefix).or_else(|| aliases.get(format!("{route}/*").as_str()))
    }

    /// The types that it has, with their resources.
    pub fn types(&self) -> impl Iterator<Item = (&str, &TypeResources)> {
        self.types.iter().map(|(type_url, resources)| (&**type_url, resources))
    }

    /// The types of which there is something by name only, with their resources.
    pub fn named_types(&self) -> impl Iterator<Item = (&str, &TypeResources)> {
        self.named.iter().map(|(type_url, resources)| (&**type_url, resources))
    }

    /// Whether what goes out unasked is shared with the other set, type by type.
    pub fn shares_unasked(&self, other: &Self) -> bool {
        same(&self.types, &other.types)
    }

    /// Whether every type shares its map with the other set, so that nothing in them differs.
    pub fn shares_all(&self, other: &Self) -> bool {
        same(&self.types, &other.types) && same(&self.named, &other.named)
    }

    /// Takes over from `previous` what is equal, so that memory and comparisons are shared.
    pub fn share_with(&mut self, previous: &Self) {
        share(&mut self.types, &previous.types);
        share(&mut self.named, &previous.named);
    }
}

type Types = BTreeMap<Arc<str>, TypeResources>;

fn insert(types: &mut Types, resource: Arc<Encoded>) {
    let of_type = match types.get_mut(resource.any.type_url.as_str()) {
        Some(of_type) => of_type,
        None => types.entry(kinds::interned(&resource.any.type_url)).or_default(),
    };
    of_type.insert(resource.name.clone(), resource);
}

fn share(types: &mut Types, previous: &Types) {
    for (type_url, resources) in types {
        let Some(before) = previous.get(type_url) else { continue };
        // The old map with the differences put in has the old map's tree.
        let mut shared = before.clone();
        for name in changed_names(Some(before), Some(resources)) {
            match resources.get(&name) {
                Some(resource) => drop(shared.insert(name, resource.clone())),
                None => drop(shared.remove(&name)),
            }
        }
        *resources = shared;
    }
}

fn same(types: &Types, others: &Types) -> bool {
    types.len() == others.len()
        && types
            .iter()
            .all(|(type_url, resources)| others.get(type_url).is_some_and(|other| other.ptr_eq(resources)))
}

/// Names that were added, removed or changed between two maps of one type, in order. Costs what differs, not what is
/// there, if one descends from the other.
pub fn changed_names(old: Option<&TypeResources>, new: Option<&TypeResources>) -> Vec<Arc<str>> {
    match (old, new) {
        (None, None) => Vec::new(),
        (Some(all), None) | (None, Some(all)) => all.keys().cloned().collect(),
        (Some(old), Some(new)) if old.ptr_eq(new) => Vec::new(),
        (Some(old), Some(new)) => old
            .diff(new)
            .map(|item| match item {
                DiffItem::Add(name, _)
                | DiffItem::Remove(name, _)
                | DiffItem::Update { new: (name, _), .. } => name.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use xds_proto::envoy::config::{
        cluster::v3::cluster::EdsClusterConfig,
        listener::v3::{ApiListener, FilterChain},
    };
    use xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::Rds;
    use xds_proto::isthmus::agent::v1::Node;

    use super::*;

    fn node(name: &str, address: &str) -> Encoded {
        Encoded::new(name, &Node { name: name.into(), address: address.into(), ..Default::default() })
    }

    fn set(nodes: &[(&str, &str)]) -> ResourceSet {
        let mut set = ResourceSet::new(1);
        nodes.iter().for_each(|(name, address)| set.insert(node(name, address)));
        set
    }

    #[test]
    fn equal_contents_have_equal_versions_and_different_contents_different_ones() {
        assert_eq!(node("a", "10.0.0.1").version, node("a", "10.0.0.1").version);
        assert_ne!(node("a", "10.0.0.1").version, node("a", "10.0.0.2").version);
    }

    #[test]
    fn a_cluster_refers_to_its_endpoints_by_service_name_or_by_its_own_name() {
        let mut cluster = Cluster {
            name: "c".into(),
            eds_cluster_config: Some(EdsClusterConfig::default()),
            ..Default::default()
        };
        assert_eq!(Encoded::new("c", &cluster).references, ["c".into()]);
        cluster.eds_cluster_config.as_mut().unwrap().service_name = "s".into();
        assert_eq!(Encoded::new("c", &cluster).references, ["s".into()]);
        cluster.eds_cluster_config = None;
        assert_eq!(Encoded::new("c", &cluster).references, []);
    }

    #[test]
    fn a_listener_refers_to_the_route_configurations_of_all_its_chains() {
        let manager = |route: &str| {
            to_any(&HttpConnectionManager {
                route_specifier: Some(RouteSpecifier::Rds(Rds {
                    route_config_name: route.into(),
                    ..Default::default()
                })),
                ..Default::default()
            })
        };
        let chain = |route: &str| FilterChain {
            filters: vec![Filter {
                config_type: Some(ConfigType::TypedConfig(manager(route))),
                ..Default::default()
            }],
            ..Default::default()
        };
        let listener = Listener {
            filter_chains: vec![chain("b"), chain("a")],
            default_filter_chain: Some(chain("b")),
            api_listener: Some(ApiListener { api_listener: Some(manager("c")) }),
            ..Default::default()
        };
        assert_eq!(Encoded::new("l", &listener).references, ["a", "b", "c"].map(Arc::from));
    }

    #[test]
    fn changes_are_additions_removals_and_new_versions_and_nothing_else() {
        let old = set(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let new = set(&[("b", "2"), ("c", "1"), ("d", "1")]);
        let names = changed_names(old.of(kinds::NODE), new.of(kinds::NODE));
        assert_eq!(names, ["a", "b", "d"].map(Arc::from));
        assert_eq!(changed_names(old.of(kinds::NODE), None).len(), 3);
        assert_eq!(changed_names(None, new.of(kinds::NODE)).len(), 3);
    }

    #[test]
    fn a_virtual_host_is_found_by_its_name_its_domains_and_the_wildcard_that_envoy_would_choose() {
        let host = |name: &str, domains: &[&str]| {
            let domains = domains.iter().map(ToString::to_string).collect();
            Encoded::new(name, &VirtualHost { name: name.into(), domains, ..Default::default() })
        };
        let mut set = ResourceSet::new(1);
        set.insert(host("r/web", &["web.shop", "web.shop:80"]));
        set.insert_named(host("r/any", &["*.example.com", "*.eu.example.com", "cdn.*"]));
        set.insert_named(host("other/all", &["*"]));
        let found = |asked: &str| set.resolve(asked).map(|name| name.to_string());
        assert_eq!(found("r/web").as_deref(), Some("r/web"));
        assert_eq!(found("r/web.shop:80").as_deref(), Some("r/web"));
        assert_eq!(found("r/a.eu.example.com").as_deref(), Some("r/any"));
        assert_eq!(found("r/cdn.example.org").as_deref(), Some("r/any"));
        assert_eq!(found("other/web.shop").as_deref(), Some("other/all"));
        assert_eq!(found("r/example.com"), None);
        assert_eq!(found("r/ünknown"), None);
        assert_eq!(found("web.shop"), None);
        set.insert(host("r/late", &["late"]));
        assert_eq!(set.resolve("r/late").map(|name| &**name), Some("r/late"));
    }

    #[test]
    fn another_time_to_live_is_another_version() {
        let lives = |seconds| node("a", "10.0.0.1").with_ttl(Duration::from_secs(seconds)).version;
        assert_eq!(lives(1), lives(1));
        assert_ne!(lives(1), lives(2));
        assert_ne!(lives(1), node("a", "10.0.0.1").version);
    }

    #[test]
    fn sharing_keeps_the_map_of_an_unchanged_type_and_the_resources_of_a_changed_one() {
        let old = set(&[("a", "1"), ("b", "1")]);
        let mut same = set(&[("a", "1"), ("b", "1")]);
        same.share_with(&old);
        assert!(same.shares_all(&old));
        let mut changed = set(&[("a", "1"), ("b", "2")]);
        changed.share_with(&old);
        let shared =
            |name| Arc::ptr_eq(changed.get(kinds::NODE, name).unwrap(), old.get(kinds::NODE, name).unwrap());
        assert!(shared("a") && !shared("b"));
    }
}
