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
    /// What a reconnecting delta client holds, name to version. Without the [mark](marked) of the revision.
    pub initial_versions: BTreeMap<String, String>,
    /// The newest revision of which the client says that it has accepted something. Of an earlier stream, if the request
    /// is the first one of its type on this one.
    pub seen: Option<u64>,
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

/// Stands between the version of a resource and the revision that it was sent at.
const MARK: char = '@';

/// What is put after the version of a resource in delta, which a client says again when it reconnects: the revision. It
/// has no other words for what it has seen, and the version by itself says nothing of which is newer.
///
/// What lives for a time goes without: a heartbeat is one only if its version is the very same.
pub fn mark(revision: u64) -> String {
    format!("{MARK}{revision}")
}

/// A version as a client says it, without its mark, and the revision of that. Of a version that is not ours, or of a
/// time when there were no marks, the whole and None.
pub fn marked(version: &str) -> (&str, Option<u64>) {
    let split = version.rsplit_once(MARK).and_then(|(version, mark)| Some((version, mark.parse().ok()?)));
    split.map_or((version, None), |(version, revision)| (version, Some(revision)))
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
            seen: request.version_info.parse().ok(),
        }
    }
}

impl From<DeltaDiscoveryRequest> for Request {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        let mut subscribe = request.resource_names_subscribe;
        subscribe.extend(request.resource_locators_subscribe.into_iter().map(|locator| locator.name));
        let mut unsubscribe = request.resource_names_unsubscribe;
        unsubscribe.extend(request.resource_locators_unsubscribe.into_iter().map(|locator| locator.name));
        let mut seen = None;
        let mut unmarked = |(name, mut version): (String, String)| {
            let (bare, revision) = marked(&version);
            let length = bare.len();
            seen = revision.max(seen);
            version.truncate(length);
            (name, version)
        };
        let initial_versions = request.initial_resource_versions.into_iter().map(&mut unmarked).collect();
        Self {
            type_url: request.type_url,
            interest: Interest::Change { subscribe, unsubscribe },
            nonce: request.response_nonce,
            error: request.error_detail.map(Into::into),
            initial_versions,
            seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_the_revision_that_it_was_sent_at_and_one_that_is_not_ours_says_none() {
        assert_eq!(marked(&format!("3fa0{}", mark(17))), ("3fa0", Some(17)));
        for foreign in ["3fa0", "", "@", "3fa0@", "3fa0@x", "3fa0@-1", "3fa0@99999999999999999999"] {
            assert_eq!(marked(foreign), (foreign, None));
        }
    }

    #[test]
    fn a_reconnecting_client_has_seen_the_newest_revision_that_it_names() {
        let held = [("a", "1@5"), ("b", "2@9"), ("c", "3"), ("d", "4@7")];
        let held = held.map(|(name, version)| (name.to_owned(), version.to_owned()));
        let request: Request =
            DeltaDiscoveryRequest { initial_resource_versions: held.into(), ..Default::default() }.into();
        assert_eq!(request.seen, Some(9));
        assert_eq!(request.initial_versions.into_values().collect::<Vec<_>>(), ["1", "2", "3", "4"]);
        let request: Request = DiscoveryRequest { version_info: "12".into(), ..Default::default() }.into();
        assert_eq!(request.seen, Some(12));
        assert_eq!(Request::from(DiscoveryRequest::default()).seen, None);
    }
}
