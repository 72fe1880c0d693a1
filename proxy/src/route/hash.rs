//! The hash of a request, by which ring hash and Maglev choose (`RouteAction.hash_policy`). Pure.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use regex::Regex;
use serde::{Serialize, Serializer};

use crate::{
    balance::hash::{combine, xx},
    config::Priority,
};

/// What a route says about the choice of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UpstreamChoice {
    /// Which circuit breakers count.
    pub priority: Priority,
    /// In order.
    pub hash: Vec<HashPolicy>,
}

/// One of several; their hashes are combined in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HashPolicy {
    /// What is hashed.
    pub of: HashOf,
    /// If there is a hash after this one, the others are not looked at.
    pub terminal: bool,
}

/// What is hashed. What a request does not have is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashOf {
    /// The values of a header.
    Header {
        /// Lower case.
        name: String,
        /// Applied to the value before.
        rewrite: Option<Rewrite>,
    },
    /// The value of a cookie.
    Cookie {
        /// Its name.
        name: String,
        /// A client without it is given one that lasts so long; zero: until the browser ends. `None`: it is not.
        ttl: Option<Duration>,
        /// Its path; empty: the browser's default.
        path: String,
        /// What else it is to say, in order.
        attributes: Vec<(String, String)>,
    },
    /// The client's address.
    SourceIp,
    /// The first value of a parameter of the query.
    Query(String),
}

/// `RegexMatchAndSubstitute`: replaces every match.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// What is replaced.
    pub regex: Regex,
    /// By what, with `${1}` for groups.
    pub by: String,
}

impl PartialEq for Rewrite {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && self.by == other.by
    }
}

impl Serialize for Rewrite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.regex.as_str(), &self.by).serialize(serializer)
    }
}

/// What is hashed of.
#[derive(Debug, Clone, Copy)]
pub struct Hashable<'a> {
    /// Of the request.
    pub headers: &'a HeaderMap,
    /// Of the request.
    pub path_and_query: &'a str,
    /// The client.
    pub client: IpAddr,
    /// What a new cookie's value is made of: the same for all requests of a connection.
    pub connection: &'a str,
}

/// What comes of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashed {
    /// None: the request has nothing to hash.
    pub hash: Option<u64>,
    /// `set-cookie` of the answer.
    pub cookie: Option<HeaderValue>,
}

/// The hash of a request.
pub fn hash(policies: &[HashPolicy], request: Hashable<'_>) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let next = match &policy.of {
            HashOf::Header { name, rewrite } => header(request.headers, name, rewrite.as_ref()),
            HashOf::Cookie { name, ttl, path, attributes } => {
                match (cookie(request.headers, name).filter(|value| !value.is_empty()), ttl) {
                    (Some(value), _) => Some(xx(value.as_bytes(), 0)),
                    (None, None) => None,
                    (None, Some(ttl)) => {
                        let value = format!("{:016x}", xx(request.connection.as_bytes(), 0));
                        hashed.cookie = set_cookie(name, &value, *ttl, path, attributes);
                        Some(xx(value.as_bytes(), 0))
                    }
                }
            }
            HashOf::SourceIp => Some(xx(request.client.to_canonical().to_string().as_bytes(), 0)),
            HashOf::Query(name) => query(request.path_and_query, name).map(|value| xx(value.as_bytes(), 0)),
        };
        if let Some(next) = next {
            hashed.hash = Some(combine(hashed.hash, next));
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

fn header(headers: &HeaderMap, name: &str, rewrite: Option<&Rewrite>) -> Option<u64> {
    let mut values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    if let (Some(rewrite), [only]) = (rewrite, values.as_slice()) {
        let text = String::from_utf8_lossy(only);
        return Some(xx(rewrite.regex.replace_all(&text, rewrite.by.as_str()).as_bytes(), 0));
    }
    match values.as_slice() {
        [] => None,
        [only] => Some(xx(only, 0)),
        _ => {
            // In whatever order they came, as if they were one text.
            values.sort_unstable();
            Some(xx(&values.concat(), 0))
        }
    }
}

/// The value of a cookie of a request.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        (found.trim() == name).then_some(unquoted)
    })
}

fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: &str,
    attributes: &[(String, String)],
) -> Option<HeaderValue> {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        text += &format!("; Max-Age={}", ttl.as_secs());
    }
    if !path.is_empty() {
        text += &format!("; Path={path}");
    }
    for (key, value) in attributes {
        text += &if value.is_empty() { format!("; {key}") } else { format!("; {key}={value}") };
    }
    text += "; HttpOnly";
    HeaderValue::try_from(text).ok()
}

fn query<'a>(path_and_query: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path_and_query.split_once('?')?;
    let (query, _) = query.split_once('#').unwrap_or((query, ""));
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(of: HashOf) -> HashPolicy {
        HashPolicy { of, terminal: false }
    }

    fn named(name: &str) -> HashOf {
        HashOf::Header { name: name.to_owned(), rewrite: None }
    }

    fn of(policies: &[HashPolicy], headers: &[(&'static str, &'static str)], path: &str) -> Hashed {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let client = "10.0.0.1".parse().unwrap();
        hash(policies, Hashable { headers: &map, path_and_query: path, client, connection: "a|b" })
    }

    #[test]
    fn each_kind_hashes_what_it_says() {
        let value = |text: &str| Some(xx(text.as_bytes(), 0));
        let cookie =
            |ttl| HashOf::Cookie { name: "s".to_owned(), ttl, path: String::new(), attributes: vec![] };
        assert_eq!(of(&[policy(named("x-user"))], &[("x-user", "ann")], "/").hash, value("ann"));
        assert_eq!(of(&[policy(named("x-user"))], &[], "/").hash, None);
        let twice = of(&[policy(named("x"))], &[("x", "b"), ("x", "a")], "/").hash;
        assert_eq!(twice, of(&[policy(named("x"))], &[("x", "a"), ("x", "b")], "/").hash);
        assert_eq!(of(&[policy(HashOf::SourceIp)], &[], "/").hash, value("10.0.0.1"));
        assert_eq!(of(&[policy(HashOf::Query("q".to_owned()))], &[], "/a?x=1&q=2&q=3").hash, value("2"));
        assert_eq!(of(&[policy(HashOf::Query("q".to_owned()))], &[], "/a?x=q").hash, None);
        let sent = of(&[policy(cookie(None))], &[("cookie", "a=1; s=\"7\"")], "/");
        assert_eq!((sent.hash, sent.cookie), (value("7"), None));
        assert_eq!(of(&[policy(cookie(None))], &[], "/").hash, None);
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_hashes_alike_next_time() {
        let cookie = HashOf::Cookie {
            name: "s".to_owned(),
            ttl: Some(Duration::from_secs(60)),
            path: "/shop".to_owned(),
            attributes: vec![("SameSite".to_owned(), "Lax".to_owned())],
        };
        let first = of(&[policy(cookie.clone())], &[], "/");
        let text = first.cookie.as_ref().unwrap().to_str().unwrap().to_owned();
        assert!(text.ends_with("; Max-Age=60; Path=/shop; SameSite=Lax; HttpOnly"), "{text}");
        let pair: &'static str = text.split(';').next().unwrap().to_owned().leak();
        let second = of(&[policy(cookie)], &[("cookie", pair)], "/");
        assert_eq!((second.hash, second.cookie), (first.hash, None));
    }

    #[test]
    fn policies_are_combined_until_a_terminal_one_has_something() {
        let both = [policy(named("a")), policy(named("b"))];
        let combined = of(&both, &[("a", "1"), ("b", "2")], "/").hash;
        assert_eq!(combined, Some(xx(b"1", 0).rotate_left(1) ^ xx(b"2", 0)));
        let terminal = [HashPolicy { terminal: true, ..policy(named("a")) }, policy(named("b"))];
        assert_eq!(of(&terminal, &[("a", "1"), ("b", "2")], "/").hash, Some(xx(b"1", 0)));
        assert_eq!(of(&terminal, &[("b", "2")], "/").hash, Some(xx(b"2", 0)));
    }

    #[test]
    fn a_header_is_rewritten_before() {
        let rewrite = Rewrite { regex: Regex::new("^([a-z]+)-.*$").unwrap(), by: "${1}".to_owned() };
        let policies = [policy(HashOf::Header { name: "x".to_owned(), rewrite: Some(rewrite) })];
        assert_eq!(of(&policies, &[("x", "pay-1")], "/").hash, of(&policies, &[("x", "pay-2")], "/").hash);
        assert_eq!(of(&policies, &[("x", "pay-1")], "/").hash, Some(xx(b"pay", 0)));
    }
}
