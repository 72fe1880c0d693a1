//! The subscriber's side of incremental xDS, pure.
//!
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds>.
//!
//! The state outlives streams. It remembers which version of which resource was *accepted*, and says so in
//! the first message of each type on a new stream, so that nothing unchanged is sent again, and a resource that a NACK
//! refused is not counted as held.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use xds_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    google::rpc::Status,
};

use crate::{Names, Receipt, Resource, Subscription, Update, WILDCARD};

/// Most resources that are held of one type. More are refused with a NACK.
pub const MAX_RESOURCES_PER_TYPE: usize = 1_000_000;
/// A longer NACK message is cut; it is for people.
pub const MAX_NACK_MESSAGE_BYTES: usize = 4096;
/// `google.rpc.Code.INVALID_ARGUMENT`. Servers look at the presence of the error, not at its code.
const INVALID_ARGUMENT: i32 = 3;

/// A response that no handler gets to see. It is answered with a NACK of these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The type was never subscribed to.
    #[error("response of type {0:?}, which is not subscribed to")]
    UnknownType(String),
    /// A resource without a name can't be acknowledged.
    #[error("resource {index} of type {type_url} has no name")]
    NoName {
        /// Type of the response.
        type_url: String,
        /// Position in the response.
        index: usize,
    },
    /// The packed message is of another type than the response.
    #[error("resource {name:?} is a {found}, but the response is of type {type_url}")]
    WrongType {
        /// Name of the resource.
        name: String,
        /// Type of the response.
        type_url: String,
        /// Type of the resource.
        found: String,
    },
    /// Neither a message nor a heartbeat (which would carry a TTL).
    #[error("resource {0:?} is empty")]
    Empty(String),
    /// The same name twice, added or removed.
    #[error("resource {0:?} is in the response more than once")]
    Duplicate(String),
    /// See [`MAX_RESOURCES_PER_TYPE`].
    #[error("more than {MAX_RESOURCES_PER_TYPE} resources of type {0}")]
    TooMany(String),
}

#[derive(Debug, Clone, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Accepted resources only.
    versions: BTreeMap<String, String>,
    /// Whether this type's first message went out on the current stream.
    opened: bool,
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn subscribed(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    /// Everything that is wanted, as the protocol spells it.
    fn spelled(&self) -> Vec<String> {
        self.wildcard.then(|| WILDCARD.to_owned()).into_iter().chain(self.names.iter().cloned()).collect()
    }
}

/// Subscriptions and accepted versions of one client.
#[derive(Debug, Clone)]
pub struct DeltaState {
    node: Node,
    node_sent: bool,
    connected: bool,
    /// Types are opened in the order in which they were first subscribed to.
    order: Vec<String>,
    types: BTreeMap<String, TypeState>,
    revision: Option<u64>,
}

impl DeltaState {
    /// A client that has nothing yet. `node` goes with the first message of every stream.
    pub fn new(node: Node, subscriptions: impl IntoIterator<Item = Subscription>) -> Self {
        let mut state = Self {
            node,
            node_sent: false,
            connected: false,
            order: Vec::new(),
            types: BTreeMap::new(),
            revision: None,
        };
        for subscription in subscriptions {
            // Not connected: the state changes, and `connect` will say it all.
            let _ = state.subscribe(&subscription.type_url, subscription.names);
        }
        state
    }

    /// Counts a resource as accepted that an earlier life of the process has kept. One that is not subscribed to
    /// is ignored.
    pub fn hold(&mut self, type_url: &str, name: String, version: String) {
        if let Some(state) = self.types.get_mut(type_url)
            && state.wants(&name)
        {
            state.versions.insert(name, version);
        }
    }

    /// A new stream is open: the requests to begin it with, one for each type that has a subscription.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.disconnect();
        self.connected = true;
        let types = self.order.clone();
        types.iter().filter_map(|type_url| self.open(type_url)).collect()
    }

    /// The stream is gone. Nothing is sent until the next [`connect`](Self::connect).
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.opened = false;
        }
    }

    /// Checks a response and turns it into an [`Update`]. Answer it with [`ack`](Self::ack) or
    /// [`nack`](Self::nack); an error is to be answered with [`reject`](Self::reject).
    pub fn on_response(&self, response: DeltaDiscoveryResponse) -> Result<Update, ResponseError> {
        let type_url = response.type_url;
        let state = self.types.get(&type_url).ok_or_else(|| ResponseError::UnknownType(type_url.clone()))?;
        let mut seen = BTreeSet::new();
        let mut added = Vec::with_capacity(response.resources.len());
        for (index, resource) in response.resources.into_iter().enumerate() {
            let name = match resource.resource_name {
                Some(structured) if resource.name.is_empty() => structured.name,
                _ => resource.name,
            };
            if name.is_empty() {
                return Err(ResponseError::NoName { type_url, index });
            }
            if !seen.insert(name.clone()) {
                return Err(ResponseError::Duplicate(name));
            }
            let Some(any) = resource.resource else {
                // A heartbeat prolongs a TTL and changes nothing.
                if resource.ttl.is_some() {
                    continue;
                }
                return Err(ResponseError::Empty(name));
            };
            if any.type_url != type_url {
                return Err(ResponseError::WrongType { name, type_url, found: any.type_url });
            }
            // An unsubscription may cross a response on the wire: what is no longer wanted is not passed on.
            if state.wants(&name) {
                added.push(Resource { name, version: resource.version, resource: any });
            }
        }
        let structured = response.removed_resource_names.into_iter().map(|r| r.name);
        let mut removed = Vec::with_capacity(response.removed_resources.len());
        for name in response.removed_resources.into_iter().chain(structured) {
            if !seen.insert(name.clone()) {
                return Err(ResponseError::Duplicate(name));
            }
            if state.wants(&name) {
                removed.push(name);
            }
        }
        let new = added.iter().filter(|r| !state.versions.contains_key(&r.name)).count();
        if state.versions.len() + new > MAX_RESOURCES_PER_TYPE {
            return Err(ResponseError::TooMany(type_url));
        }
        Ok(Update {
            type_url,
            added,
            removed,
            nonce: response.nonce,
            system_version: response.system_version_info,
        })
    }

    /// The update is in force: its versions count as held from now on.
    pub fn ack(&mut self, receipt: Receipt) -> DeltaDiscoveryRequest {
        self.revision = receipt.revision.max(self.revision);
        if let Some(state) = self.types.get_mut(&receipt.type_url) {
            for (name, version) in receipt.versions {
                if state.wants(&name) {
                    state.versions.insert(name, version);
                }
            }
            for name in &receipt.removed {
                state.versions.remove(name);
            }
        }
        let mut request = self.request(receipt.type_url);
        request.response_nonce = receipt.nonce;
        request
    }

    /// The update was refused as a whole; what was held before stays.
    pub fn nack(&mut self, receipt: &Receipt, message: &str) -> DeltaDiscoveryRequest {
        self.reject(&receipt.type_url, &receipt.nonce, message)
    }

    /// Refuses a response by its type and nonce.
    pub fn reject(&mut self, type_url: &str, nonce: &str, message: &str) -> DeltaDiscoveryRequest {
        let mut request = self.request(type_url.to_owned());
        request.response_nonce = nonce.to_owned();
        let end = message.floor_char_boundary(MAX_NACK_MESSAGE_BYTES);
        request.error_detail =
            Some(Status { code: INVALID_ARGUMENT, message: message[..end].to_owned(), details: Vec::new() });
        request
    }

    /// Wants more of a type. The request to send, if the stream is open and anything is new.
    pub fn subscribe(&mut self, type_url: &str, names: Names) -> Option<DeltaDiscoveryRequest> {
        if !self.types.contains_key(type_url) {
            self.order.push(type_url.to_owned());
        }
        let state = self.types.entry(type_url.to_owned()).or_default();
        let new: Vec<String> = match names {
            Names::Wildcard if state.wildcard => Vec::new(),
            Names::Wildcard => {
                state.wildcard = true;
                vec![WILDCARD.to_owned()]
            }
            Names::Only(names) => names.into_iter().filter(|name| state.names.insert(name.clone())).collect(),
        };
        if !self.connected || new.is_empty() {
            return None;
        }
        if !self.types.get(type_url).is_some_and(|state| state.opened) {
            return self.open(type_url);
        }
        let mut request = self.request(type_url.to_owned());
        request.resource_names_subscribe = new;
        Some(request)
    }

    /// Wants less of a type. What is no longer wanted is forgotten, so subscribing again brings it again.
    pub fn unsubscribe(&mut self, type_url: &str, names: &Names) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.get_mut(type_url)?;
        let gone: Vec<String> = match names {
            Names::Wildcard if state.wildcard => {
                state.wildcard = false;
                vec![WILDCARD.to_owned()]
            }
            Names::Wildcard => Vec::new(),
            Names::Only(names) => names.iter().filter(|name| state.names.remove(*name)).cloned().collect(),
        };
        let (wildcard, wanted) = (state.wildcard, &state.names);
        state.versions.retain(|name, _| wildcard || wanted.contains(name));
        if !self.connected || !state.opened || gone.is_empty() {
            return None;
        }
        let mut request = self.request(type_url.to_owned());
        request.resource_names_unsubscribe = gone;
        Some(request)
    }

    /// The revision of the last accepted update, where the server's system version is one. A replica that is
    /// told of it on the next stream does not serve anything older.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// Whether anything at all is wanted.
    pub fn subscribed(&self) -> bool {
        self.types.values().any(TypeState::subscribed)
    }

    /// Accepted resources of a type, name to version.
    pub fn versions(&self, type_url: &str) -> Option<&BTreeMap<String, String>> {
        self.types.get(type_url).map(|state| &state.versions)
    }

    /// The first message of a type on a stream. A type without any name is not opened, because an empty list
    /// would be taken for a wildcard.
    fn open(&mut self, type_url: &str) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.get_mut(type_url).filter(|state| state.subscribed())?;
        state.opened = true;
        let subscribe = state.spelled();
        let versions: HashMap<_, _> = state.versions.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        let mut request = self.request(type_url.to_owned());
        request.resource_names_subscribe = subscribe;
        request.initial_resource_versions = versions;
        Some(request)
    }

    fn request(&mut self, type_url: String) -> DeltaDiscoveryRequest {
        let node = (!self.node_sent).then(|| self.node.clone());
        self.node_sent = true;
        DeltaDiscoveryRequest { type_url, node, ..Default::default() }
    }
}

#[cfg(test)]
mod tests;
