//! Requests of both protocols in one form.

use std::collections::BTreeMap;

use xds_proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

/// A request of either protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Full type URL.
    pub type_url: String,
    /// What it says of the subscription.
    pub interest: Interest,
    /// The response that it answers; empty if none.
    pub nonce: String,
    /// Its *presence* makes the answer a NACK. Clients differ in the codes that they use, some send zero.
    pub error: Option<Refusal>,
    /// What a reconnecting delta client holds, name to version.
    pub initial_versions: BTreeMap<String, String>,
}

/// What a request says of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// SotW: the whole list, each time.
    Exactly(Vec<String>),
    /// Delta: what is new and what is over.
    Change {
        /// Names subscribed to.
        subscribe: Vec<String>,
        /// Names unsubscribed from.
        unsubscribe: Vec<String>,
    },
}

/// A client's reason for a NACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `google.rpc.Code`; for display only.
    pub code: i32,
    /// The client's words.
    pub message: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { code: status.code, message: status.message }
    }
}

impl From<DiscoveryRequest> for Request {
    fn from(request: DiscoveryRequest) -> Self {
        let mut names = request.resource_names;
        names.extend(request.resource_locators.into_iter().map(|locator| locator.name));
        Self {
            type_url: request.type_url,
            interest: Interest::Exactly(names),
            nonce: request.response_nonce,
            error: request.error_detail.map(Into::into),
            initial_versions: BTreeMap::new(),
        }
    }
}

impl From<DeltaDiscoveryRequest> for Request {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        let mut subscribe = request.resource_names_subscribe;
        subscribe.extend(request.resource_locators_subscribe.into_iter().map(|locator| locator.name));
        let mut unsubscribe = request.resource_names_unsubscribe;
        unsubscribe.extend(request.resource_locators_unsubscribe.into_iter().map(|locator| locator.name));
        Self {
            type_url: request.type_url,
            interest: Interest::Change { subscribe, unsubscribe },
            nonce: request.response_nonce,
            error: request.error_detail.map(Into::into),
            initial_versions: request.initial_resource_versions.into_iter().collect(),
        }
    }
}
