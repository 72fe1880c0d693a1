//! The language of the scripts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use xds_proto::{
    envoy::config::{
        cluster::v3::{Cluster, cluster::EdsClusterConfig},
        listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
        route::v3::VirtualHost,
    },
    envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
    },
    google::protobuf::Any,
    to_any,
};

use crate::xds::{Encoded, ResourceSet, kinds, session::*};

pub(super) const CDS: &str = kinds::CLUSTER;
pub(super) const EDS: &str = kinds::ENDPOINT;
pub(super) const LDS: &str = kinds::LISTENER;
pub(super) const RDS: &str = kinds::ROUTE;
pub(super) const VHDS: &str = kinds::VIRTUAL_HOST;
pub(super) const BOTH: [Protocol; 2] = [Protocol::Sotw, Protocol::Delta];

/// A stream and the model that it is served from. Resources are written `name=contents`.
pub(super) struct Script {
    pub(super) session: Session,
    set: ResourceSet,
}

/// How long resources live whose contents are written with a `~`.
pub(super) const TTL: Duration = Duration::from_secs(30);

/// A resource with the given contents; with a `~` before them for a time. Virtual hosts are written with the
/// authorities that they serve. Clusters refer to endpoints of their own name, listeners to routes.
fn resource(type_url: &str, text: &str) -> Encoded {
    let (name, contents) = text.split_once('=').unwrap_or((text, "1"));
    let timed = contents.strip_prefix('~');
    let contents = timed.unwrap_or(contents);
    let any = match type_url {
        VHDS => to_any(&VirtualHost {
            name: name.into(),
            domains: contents.split(',').map(str::to_owned).collect(),
            ..Default::default()
        }),
        CDS => to_any(&Cluster {
            name: name.into(),
            alt_stat_name: contents.into(),
            eds_cluster_config: Some(EdsClusterConfig::default()),
            ..Default::default()
        }),
        LDS => {
            let manager = HttpConnectionManager {
                route_specifier: Some(RouteSpecifier::Rds(Rds {
                    route_config_name: name.into(),
                    ..Default::default()
                })),
                ..Default::default()
            };
            let filter =
                Filter { config_type: Some(ConfigType::TypedConfig(to_any(&manager))), ..Default::default() };
            to_any(&Listener {
                name: name.into(),
                stat_prefix: contents.into(),
                filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
                ..Default::default()
            })
        }
        _ => Any { type_url: type_url.into(), value: contents.as_bytes().to_vec() },
    };
    let encoded = Encoded::from_any(name, any);
    if timed.is_some() { encoded.with_ttl(TTL) } else { encoded }
}

/// The version of a resource, as it is sent.
pub(super) fn version(type_url: &str, text: &str) -> String {
    resource(type_url, text).version.to_string()
}

pub(super) fn set(revision: u64, types: &[(&str, &str)]) -> ResourceSet {
    let mut set = ResourceSet::new(revision);
    for (type_url, resources) in types {
        resources.split_whitespace().for_each(|text| set.insert(resource(type_url, text)));
    }
    set
}

fn with_named(mut set: ResourceSet, named: &[(&str, &str)]) -> ResourceSet {
    for (type_url, resources) in named {
        resources.split_whitespace().for_each(|text| set.insert_named(resource(type_url, text)));
    }
    set
}

impl Script {
    /// A stream of a model at revision 1; each type's resources in one string.
    pub(super) fn new(protocol: Protocol, types: &[(&str, &str)]) -> Self {
        Self::limited(protocol, types, Limits::default())
    }

    pub(super) fn limited(protocol: Protocol, types: &[(&str, &str)], limits: Limits) -> Self {
        let set = set(1, types);
        Self { session: Session::new(protocol, 1, limits, Arc::new(set.clone()), 1), set }
    }

    /// The same, with what is to be had by name only.
    pub(super) fn with_named(protocol: Protocol, types: &[(&str, &str)], named: &[(&str, &str)]) -> Self {
        let set = with_named(set(1, types), named);
        let session = Session::new(protocol, 1, Limits::default(), Arc::new(set.clone()), 1);
        Self { session: session.for_features([RESOURCE_IN_SOTW]), set }
    }

    /// Whether the client would be concerned by a revision at which all of it is this.
    pub(super) fn concerned_by(&self, types: &[(&str, &str)], named: &[(&str, &str)]) -> bool {
        let mut next = with_named(set(self.set.revision + 1, types), named);
        next.share_with(&self.set);
        self.session.is_concerned_by(&next)
    }

    /// The next revision: all of it is this now.
    pub(super) fn replace(&mut self, types: &[(&str, &str)], named: &[(&str, &str)]) {
        let mut next = with_named(set(self.set.revision + 1, types), named);
        next.share_with(&self.set);
        self.set = next.clone();
        self.session.on_snapshot(Arc::new(next), self.set.revision);
    }

    /// So many seconds after the start.
    pub(super) fn at(&mut self, seconds: u64) -> Vec<String> {
        self.session.on_time(Duration::from_secs(seconds));
        self.sent()
    }

    /// The next revision: these types have these resources now, the others are as before.
    pub(super) fn model(&mut self, types: &[(&str, &str)]) {
        let mut next = set(self.set.revision + 1, types);
        for (type_url, resources) in self.set.types() {
            if !types.iter().any(|(changed, _)| *changed == type_url) {
                next.insert_type(type_url, resources.clone());
            }
        }
        self.set = next.clone();
        self.session.on_snapshot(Arc::new(next), self.set.revision);
    }

    /// Everything that is sent now, each as `CDS +a=1 +b=1 -c`.
    pub(super) fn sent(&mut self) -> Vec<String> {
        self.responses().iter().map(show).collect()
    }

    pub(super) fn responses(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.session.next_response()).collect()
    }

    /// Delta: subscribes, ` `-separated; names with a `-` in front are unsubscribed.
    pub(super) fn subscribe(&mut self, type_url: &str, names: &str) -> Vec<String> {
        self.say(delta(type_url, names, ""))
    }

    /// SotW: the whole list.
    pub(super) fn want(&mut self, type_url: &str, names: &str, nonce: &str) -> Vec<String> {
        self.say(sotw(type_url, names, nonce))
    }

    /// Subscribes to names (or, with an empty string, to what an empty first request means) in either protocol.
    pub(super) fn open(&mut self, type_url: &str, names: &str) -> Vec<String> {
        match self.session.protocol {
            Protocol::Sotw => self.want(type_url, names, ""),
            Protocol::Delta => self.subscribe(type_url, names),
        }
    }

    pub(super) fn say(&mut self, request: Request) -> Vec<String> {
        self.session.on_request(request).unwrap();
        self.sent()
    }

    /// ACKs the last response of a type, with the subscription as it is.
    pub(super) fn ack(&mut self, type_url: &str) -> Vec<String> {
        let request = self.answer(type_url, None);
        self.say(request)
    }

    pub(super) fn nack(&mut self, type_url: &str) -> (Vec<Event>, Vec<String>) {
        let request = self.answer(type_url, Some(Refusal { code: 0, message: "bad".into() }));
        (self.session.on_request(request).unwrap(), self.sent())
    }

    /// ACKs whatever comes until nothing more does; all that was sent on the way.
    pub(super) fn settle(&mut self) -> Vec<String> {
        self.settle_but("")
    }

    /// The same, with one type left unanswered.
    pub(super) fn settle_but(&mut self, except: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let waiting: Vec<_> = self
                .session
                .types
                .iter()
                .filter(|t| t.in_flight.is_some() && *t.type_url != *except)
                .map(|t| t.type_url.clone())
                .collect();
            if waiting.is_empty() {
                return all;
            }
            for type_url in waiting {
                all.extend(self.ack(&type_url));
            }
        }
    }

    pub(super) fn nonce(&self, type_url: &str) -> String {
        self.session.types[self.session.find(type_url).unwrap()].last_nonce.clone()
    }

    fn answer(&self, type_url: &str, error: Option<Refusal>) -> Request {
        let state = &self.session.types[self.session.find(type_url).unwrap()];
        let interest = match self.session.protocol {
            Protocol::Delta => Interest::Change { subscribe: vec![], unsubscribe: vec![] },
            Protocol::Sotw if state.wildcard && state.names.is_empty() && !state.named => {
                Interest::Exactly(vec![])
            }
            Protocol::Sotw => Interest::Exactly(
                state
                    .names
                    .iter()
                    .map(ToString::to_string)
                    .chain(state.wildcard.then(|| WILDCARD.to_owned()))
                    .collect(),
            ),
        };
        Request {
            type_url: type_url.into(),
            interest,
            nonce: state.last_nonce.clone(),
            error,
            initial_versions: BTreeMap::new(),
            seen: None,
        }
    }
}

pub(super) fn sotw(type_url: &str, names: &str, nonce: &str) -> Request {
    Request {
        type_url: type_url.into(),
        interest: Interest::Exactly(names.split_whitespace().map(str::to_owned).collect()),
        nonce: nonce.into(),
        error: None,
        initial_versions: BTreeMap::new(),
        seen: None,
    }
}

pub(super) fn delta(type_url: &str, names: &str, nonce: &str) -> Request {
    let (gone, new): (Vec<_>, Vec<_>) = names.split_whitespace().partition(|name| name.starts_with('-'));
    Request {
        type_url: type_url.into(),
        interest: Interest::Change {
            subscribe: new.into_iter().map(str::to_owned).collect(),
            unsubscribe: gone.into_iter().map(|name| name[1..].to_owned()).collect(),
        },
        nonce: nonce.into(),
        error: None,
        initial_versions: BTreeMap::new(),
        seen: None,
    }
}

/// A reconnecting delta client's first request of a type: what it wants, and what it holds as `name=contents`.
pub(super) fn reconnect(type_url: &str, names: &str, held: &str) -> Request {
    let mut request = delta(type_url, names, "");
    request.initial_versions = held
        .split_whitespace()
        .map(|text| {
            let resource = resource(type_url, text);
            (resource.name.to_string(), resource.version.to_string())
        })
        .collect();
    request
}

fn show(response: &Response) -> String {
    let kind = match &*response.type_url {
        CDS => "CDS",
        EDS => "EDS",
        LDS => "LDS",
        RDS => "RDS",
        VHDS => "VHDS",
        other => other.rsplit('.').next().unwrap(),
    };
    let mut text = kind.to_owned();
    for resource in &response.resources {
        let name = &resource.name;
        let asked: Vec<_> =
            response.aliases.iter().filter(|(of, _)| of == name).map(|(_, alias)| &**alias).collect();
        if *response.type_url == *VHDS {
            text += &format!(" +{name}({})", asked.join(","));
            continue;
        }
        // Find the contents by their version: the scripts use short ones.
        let contents = (0..10)
            .map(|n| n.to_string())
            .chain(["bad".to_owned()])
            .flat_map(|contents| [format!("~{contents}"), contents])
            .find(|n| *version(&response.type_url, &format!("{name}={n}")) == *resource.version);
        text += &format!(" +{name}={}", contents.unwrap());
    }
    for resource in &response.prolonged {
        text += &format!(" ~{}", resource.name);
    }
    for name in &response.removed {
        text += &format!(" -{name}");
    }
    for name in &response.unresolved {
        text += &format!(" ?{name}");
    }
    for (name, _) in &response.errors {
        text += &format!(" !{name}");
    }
    text
}
