//! What a request is counted as (`RateLimit` of routes and virtual hosts).

use std::{net::IpAddr, sync::Arc};

use http::HeaderName;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::{
    policy::{Metadata, MetadataTest},
    route::{HeaderTest, RequestView},
};

/// Keys and values, in their order.
pub type Descriptor = Vec<(String, String)>;

/// `RateLimit`: what one descriptor is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitRule {
    /// Which filter asks: the one of the same number.
    pub stage: u32,
    /// What each entry is made from.
    pub actions: Vec<DescriptorAction>,
    /// What one request counts. `None`: what the filter says.
    pub hits: Option<u64>,
}

/// Where an entry comes from. Without it there is no descriptor, unless it may be left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DescriptorAction {
    /// `destination_cluster`: where the request goes.
    DestinationCluster,
    /// A header.
    Header {
        #[allow(missing_docs)]
        #[serde(serialize_with = "name")]
        header: HeaderName,
        #[allow(missing_docs)]
        key: String,
        /// Whether it may be left out.
        skip: bool,
    },
    /// A query parameter.
    Query {
        #[allow(missing_docs)]
        parameter: String,
        #[allow(missing_docs)]
        key: String,
        /// Whether it may be left out.
        skip: bool,
    },
    /// `remote_address`: the client.
    RemoteAddress,
    /// `masked_remote_address`: the client's network, by these lengths of IPv4 and IPv6.
    MaskedRemoteAddress(u8, u8),
    /// Always this.
    Generic {
        #[allow(missing_docs)]
        key: String,
        #[allow(missing_docs)]
        value: String,
    },
    /// This, if all conditions on headers hold, or not all of them.
    HeaderMatch {
        #[allow(missing_docs)]
        key: String,
        #[allow(missing_docs)]
        value: String,
        /// Whether they must hold.
        expect: bool,
        #[allow(missing_docs)]
        headers: Vec<HeaderTest>,
    },
    /// What a filter has found out.
    Metadata {
        #[allow(missing_docs)]
        key: String,
        /// Where it is; the comparison is of no concern.
        at: MetadataTest,
        /// If it is not there. Empty: there is no entry.
        default: String,
        /// Whether it may be left out.
        skip: bool,
    },
}

fn name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

/// Rules of a route and of its virtual host.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RouteLimits {
    /// The route's own.
    pub route: Vec<LimitRule>,
    /// The virtual host's.
    pub vhost: Arc<Vec<LimitRule>>,
    /// Whether both count (`include_vh_rate_limits`); otherwise the virtual host's do where the route has none.
    pub include_vhost: bool,
}

/// What entries are made from.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    #[allow(missing_docs)]
    pub request: &'a RequestView<'a>,
    /// The client behind the proxies that are trusted.
    pub client: IpAddr,
    /// Where it goes.
    pub cluster: &'a str,
    #[allow(missing_docs)]
    pub metadata: &'a Metadata,
}

/// The descriptors of a request, with what it counts for each.
pub fn descriptors<'a>(
    rules: impl IntoIterator<Item = &'a LimitRule>,
    stage: u32,
    subject: Subject<'_>,
) -> Vec<(Descriptor, Option<u64>)> {
    let of_stage = rules.into_iter().filter(|rule| rule.stage == stage);
    of_stage.filter_map(|rule| Some((rule.descriptor(subject)?, rule.hits))).collect()
}

impl LimitRule {
    fn descriptor(&self, subject: Subject<'_>) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(subject) {
                Some(entry) => entries.push(entry),
                None if action.may_be_left_out() => {}
                None => return None,
            }
        }
        Some(entries).filter(|entries| !entries.is_empty())
    }
}

impl DescriptorAction {
    fn may_be_left_out(&self) -> bool {
        match self {
            Self::Header { skip, .. } | Self::Query { skip, .. } | Self::Metadata { skip, .. } => *skip,
            _ => false,
        }
    }

    fn entry(&self, subject: Subject<'_>) -> Option<(String, String)> {
        let Subject { request, client, cluster, metadata } = subject;
        let client = client.to_canonical();
        let given = |key: &String, value: &String| (key.clone(), value.clone());
        match self {
            Self::DestinationCluster => Some(("destination_cluster".to_owned(), cluster.to_owned())),
            Self::Header { header, key, .. } => {
                let value = request.headers.get(header)?;
                Some((key.clone(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            }
            Self::Query { parameter, key, .. } => {
                let (_, query) = request.path_and_query.split_once('?')?;
                let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                pairs.find(|(name, _)| name == parameter).map(|(_, value)| (key.clone(), value.to_owned()))
            }
            Self::RemoteAddress => Some(("remote_address".to_owned(), client.to_string())),
            Self::MaskedRemoteAddress(v4, v6) => {
                let length = if client.is_ipv4() { *v4 } else { *v6 };
                let network = IpNet::new(client, length).ok()?.trunc();
                Some(("masked_remote_address".to_owned(), network.to_string()))
            }
            Self::Generic { key, value } => Some(given(key, value)),
            Self::HeaderMatch { key, value, expect, headers } => {
                let holds = headers.iter().all(|test| test.matches(request));
                (holds == *expect).then(|| given(key, value))
            }
            Self::Metadata { key, at, default, .. } => {
                let found = at.text(metadata).filter(|text| !text.is_empty());
                let value = found.or_else(|| Some(default.clone()).filter(|text| !text.is_empty()))?;
                Some((key.clone(), value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn made(actions: Vec<DescriptorAction>, path_and_query: &str) -> Vec<(Descriptor, Option<u64>)> {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", "web".parse().unwrap());
        let request =
            RequestView { method: "GET", scheme: "http", authority: "a", path_and_query, headers: &headers };
        let subject = Subject {
            request: &request,
            client: "::ffff:10.1.2.3".parse().unwrap(),
            cluster: "pay",
            metadata: &Metadata::default(),
        };
        let rule = LimitRule { stage: 0, actions, hits: None };
        descriptors([&rule, &LimitRule { stage: 1, ..rule.clone() }], 0, subject)
    }

    #[test]
    fn a_descriptor_has_all_of_its_entries_or_is_none() {
        let header = |name: &str, skip| DescriptorAction::Header {
            header: name.parse().unwrap(),
            key: "user".into(),
            skip,
        };
        let query = DescriptorAction::Query { parameter: "q".into(), key: "query".into(), skip: false };
        let all = vec![
            DescriptorAction::DestinationCluster,
            header("x-user", false),
            header("x-none", true),
            query.clone(),
            DescriptorAction::RemoteAddress,
            DescriptorAction::MaskedRemoteAddress(16, 64),
        ];
        let expected = [
            ("destination_cluster", "pay"),
            ("user", "web"),
            ("query", "5"),
            ("remote_address", "10.1.2.3"),
            ("masked_remote_address", "10.1.0.0/16"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        assert_eq!(made(all, "/a?x&q=5"), [(expected, None)]);
        assert_eq!(made(vec![DescriptorAction::RemoteAddress, header("x-none", false)], "/"), []);
        assert_eq!(made(vec![header("x-none", true)], "/"), [], "nothing is no descriptor");
        assert_eq!(made(vec![query], "/a?x=q"), []);
    }

    #[test]
    fn conditions_give_their_entry_or_none() {
        let header = |expect| DescriptorAction::HeaderMatch {
            key: "header_match".into(),
            value: "yes".into(),
            expect,
            headers: vec![],
        };
        assert_eq!((made(vec![header(true)], "/").len(), made(vec![header(false)], "/").len()), (1, 0));
    }
}
