//! Who a request is from, and which of its words about that are believed: Envoy's rules
//! (`ConnectionManagerUtility::mutateRequestHeaders`). Pure.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Edge;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// Only proxies in front of the edge may send these.
const NOT_AT_THE_EDGE: [HeaderName; 6] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-downstream-service-cluster"),
    HeaderName::from_static("x-envoy-downstream-service-node"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-original-host"),
    HeaderName::from_static("x-envoy-attempt-count"),
];

/// What they ask for is done only for clients of one's own.
const INTERNAL_ONLY: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// What is believed of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Believed {
    /// The client. The port is only right for the connection's own.
    pub(super) remote: SocketAddr,
    /// It is one's own.
    pub(super) internal: bool,
    /// It comes from outside, to where the mesh begins.
    pub(super) edge: bool,
    /// By `x-forwarded-proto`.
    pub(super) scheme: &'static str,
}

/// Judges what a request says of its client, removes what may not be said and adds what is known.
pub(super) fn judge(
    headers: &mut HeaderMap,
    edge: &Edge,
    connection_scheme: &'static str,
    remote: SocketAddr,
    local: SocketAddr,
) -> Believed {
    headers.remove(INTERNAL);
    let mut client = None;
    let mut checked = false;
    if edge.use_remote_address {
        checked = !headers.contains_key(FORWARDED_FOR);
        if let Some(skip) = edge.trusted_hops.checked_sub(1) {
            client = forwarded_address(headers, skip).map(|(address, _)| address);
        }
        client.get_or_insert(remote.ip().to_canonical());
        if edge.append_forwarded_for {
            append_forwarded_for(headers, remote.ip());
        }
        // The client's own word, unless a proxy that is believed has said it.
        if edge.trusted_hops == 0 || !headers.contains_key(FORWARDED_PROTO) {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(connection_scheme));
        }
        if edge.append_forwarded_port && (edge.trusted_hops == 0 || !headers.contains_key(FORWARDED_PORT)) {
            headers.insert(FORWARDED_PORT, HeaderValue::from(local.port()));
        }
    } else if let Some((address, single)) = forwarded_address(headers, edge.trusted_hops) {
        client = Some(address);
        checked = single;
    }
    let said = scheme_of(headers.get(FORWARDED_PROTO));
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(connection_scheme));
    }
    let internal =
        checked && client.is_some_and(|client| edge.internal.iter().any(|block| block.contains(&client)));
    let edge_request = !internal && edge.use_remote_address;
    if internal {
        headers.insert(INTERNAL, HeaderValue::from_static("true"));
    } else {
        if edge_request {
            NOT_AT_THE_EDGE.iter().for_each(|name| drop(headers.remove(name)));
        }
        INTERNAL_ONLY.iter().for_each(|name| drop(headers.remove(name)));
    }
    let remote = match client {
        Some(address) if address != remote.ip().to_canonical() => SocketAddr::new(address, 0),
        _ => remote,
    };
    Believed { remote, internal, edge: edge_request, scheme: said.unwrap_or(connection_scheme) }
}

pub(super) fn scheme_of(value: Option<&HeaderValue>) -> Option<&'static str> {
    let value = value?.as_bytes();
    ["http", "https"].into_iter().find(|scheme| value.eq_ignore_ascii_case(scheme.as_bytes()))
}

/// The address that is `skip` before the last one in `x-forwarded-for`, and whether it is the only one.
fn forwarded_address(headers: &HeaderMap, skip: u32) -> Option<(IpAddr, bool)> {
    let mut all = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let text = match (all.next(), all.next()) {
        (Some(only), None) => only.to_owned(),
        (Some(first), Some(second)) => [first, second].into_iter().chain(all).collect::<Vec<_>>().join(","),
        (None, _) => return None,
    };
    let single = skip == 0 && !text.contains(',');
    let word = text.rsplit(',').nth(skip as usize)?.trim();
    word.parse::<IpAddr>().ok().map(|address| (address.to_canonical(), single))
}

fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let ip = client.to_canonical().to_string();
    let value = match headers.get(FORWARDED_FOR) {
        None => HeaderValue::from_str(&ip).ok(),
        Some(_) => {
            let mut all: Vec<u8> = vec![];
            for value in headers.get_all(FORWARDED_FOR) {
                all.extend_from_slice(value.as_bytes());
                all.extend_from_slice(b", ");
            }
            all.extend_from_slice(ip.as_bytes());
            HeaderValue::from_bytes(&all).ok()
        }
    };
    if let Some(value) = value {
        headers.insert(FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: &str = "10.9.9.9:4000";

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn believed(edge: &Edge, headers: &mut HeaderMap) -> Believed {
        judge(headers, edge, "http", REMOTE.parse().unwrap(), "10.0.0.1:8080".parse().unwrap())
    }

    fn outermost() -> Edge {
        Edge { use_remote_address: true, append_forwarded_for: true, ..Edge::default() }
    }

    #[test]
    fn a_clients_word_about_its_scheme_and_address_is_not_believed_at_the_edge() {
        let mut headers = map(&[("x-forwarded-proto", "https"), ("x-forwarded-for", "1.2.3.4")]);
        let found = believed(&outermost(), &mut headers);
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 10.9.9.9");
        assert_eq!((found.scheme, found.remote.to_string()), ("http", REMOTE.to_owned()));
        assert!(found.edge && !found.internal);
    }

    #[test]
    fn a_trusted_proxy_is_believed_as_far_as_it_is_trusted() {
        let edge = Edge { trusted_hops: 1, ..outermost() };
        let mut headers = map(&[("x-forwarded-proto", "https"), ("x-forwarded-for", "6.6.6.6, 1.2.3.4")]);
        let found = believed(&edge, &mut headers);
        assert_eq!((headers["x-forwarded-proto"].to_str().unwrap(), found.scheme), ("https", "https"));
        assert_eq!(found.remote.ip().to_string(), "1.2.3.4");
        // Within the mesh: the peer has said it all.
        let inside = Edge::default();
        let mut headers = map(&[("x-forwarded-proto", "https"), ("x-forwarded-for", "6.6.6.6, 1.2.3.4")]);
        let found = believed(&inside, &mut headers);
        assert_eq!((headers["x-forwarded-proto"].to_str().unwrap(), found.scheme), ("https", "https"));
        assert_eq!(found.remote.ip().to_string(), "1.2.3.4");
        assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 1.2.3.4");
    }

    #[test]
    fn what_only_the_mesh_may_ask_for_is_removed_from_requests_of_strangers() {
        let asked =
            [("x-envoy-retry-on", "5xx"), ("x-envoy-internal", "true"), ("x-envoy-decorator-operation", "x")];
        let mut headers = map(&asked);
        believed(&outermost(), &mut headers);
        assert_eq!(headers.len(), 2, "{headers:?}");
        let own = Edge { internal: vec!["10.0.0.0/8".parse().unwrap()], ..outermost() };
        let mut headers = map(&asked);
        assert!(believed(&own, &mut headers).internal);
        assert_eq!((headers.len(), headers["x-envoy-internal"].to_str().unwrap()), (5, "true"));
        // Who says that it speaks for another is not one's own.
        let mut headers = map(&asked);
        headers.insert("x-forwarded-for", HeaderValue::from_static("10.1.1.1"));
        assert!(!believed(&own, &mut headers).internal);
        assert!(!headers.contains_key("x-envoy-retry-on") && !headers.contains_key("x-envoy-internal"));
    }

    #[test]
    fn nonsense_in_forwarded_for_is_no_address() {
        for text in ["", ",", "x", "1.2.3.4,", "[::1", "1.2.3.4:80"] {
            let headers = map(&[]);
            let mut headers = headers;
            headers.insert("x-forwarded-for", HeaderValue::from_str(text).unwrap());
            assert_eq!(believed(&Edge::default(), &mut headers).remote.to_string(), REMOTE, "{text}");
        }
    }
}
