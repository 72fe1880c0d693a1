//! The conditions of one route.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use serde::{Serialize, Serializer};

use crate::{
    config::{FullRegex, Text},
    policy::Fraction,
};

/// What a route is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// `http` or `https`, as the client used it.
    pub scheme: &'a str,
    /// Host and perhaps port, as the client sent it.
    pub authority: &'a str,
    /// Path and query, beginning with `/` (or `*`).
    pub path_and_query: &'a str,
    /// All other headers.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestView<'a> {
    /// Without the query.
    pub fn path(&self) -> &'a str {
        self.path_and_query.split_once('?').map_or(self.path_and_query, |(path, _)| path)
    }

    fn query(&self) -> &'a str {
        self.path_and_query.split_once('?').map_or("", |(_, query)| query)
    }
}

/// A condition on the path. The query is never part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// Begins with.
    Prefix(String),
    /// Is.
    Exact(String),
    /// Is, or begins with it and a slash. Without a slash at its end.
    SeparatedPrefix(String),
    /// Matches as a whole.
    Regex(FullRegex),
    /// There is none: it is a `CONNECT`. No other condition holds for that.
    Connect,
}

impl PathMatch {
    fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        let equal = |a: &str, b: &str| if case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
        let head = |len: usize| path.get(..len);
        match self {
            Self::Exact(exact) => equal(path, exact),
            Self::Prefix(prefix) => head(prefix.len()).is_some_and(|h| equal(h, prefix)),
            Self::SeparatedPrefix(prefix) => {
                head(prefix.len()).is_some_and(|h| equal(h, prefix))
                    && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path),
            Self::Connect => true,
        }
    }
}

/// Whether the `content-type` is one of gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Where a condition on headers looks: a header, or one of the pseudo headers of HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderMatch {
    /// An ordinary header.
    Name(HeaderName),
    /// `:method`
    Method,
    /// `:path`, with the query.
    Path,
    /// `:authority`, and `host`.
    Authority,
    /// `:scheme`
    Scheme,
}

impl Serialize for HeaderMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Name(name) => name.as_str(),
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
        })
    }
}

impl HeaderMatch {
    /// The value; of several of the same name, all of them joined by commas, as Envoy does.
    fn value<'a>(&self, request: &RequestView<'a>) -> Option<Cow<'a, str>> {
        let name = match self {
            Self::Name(name) => name,
            Self::Method => return Some(Cow::Borrowed(request.method)),
            Self::Path => return Some(Cow::Borrowed(request.path_and_query)),
            Self::Authority => return Some(Cow::Borrowed(request.authority)),
            Self::Scheme => return Some(Cow::Borrowed(request.scheme)),
        };
        let mut values = request.headers.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        let Some(second) = values.next() else { return Some(first) };
        let mut joined = first.into_owned();
        for value in std::iter::once(second).chain(values) {
            joined.push(',');
            joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(Cow::Owned(joined))
    }
}

/// A condition on a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeaderTest {
    /// Where to look.
    pub header: HeaderMatch,
    /// The comparison; `None` asks only for presence.
    pub text: Option<Text>,
    /// `false`: the condition holds when the header is absent (`present_match: false`).
    pub present: bool,
    /// Negates the outcome.
    pub invert: bool,
    /// An absent header is compared as if it were empty. Otherwise it equals nothing, and so fits any inversion.
    pub missing_as_empty: bool,
}

impl HeaderTest {
    /// Whether the condition holds.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        let value = self.header.value(request);
        match (&self.text, value) {
            (None, value) => (value.is_some() == self.present) != self.invert,
            (Some(text), Some(value)) => text.matches(&value) != self.invert,
            (Some(text), None) if self.missing_as_empty => text.matches("") != self.invert,
            // Envoy: an absent header matches nothing, so its inversion matches.
            (Some(_), None) => self.invert,
        }
    }
}

/// A condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueryMatch {
    /// Name of the parameter, compared as it stands in the request (not decoded).
    pub name: String,
    /// The comparison; `None` asks only for presence.
    pub text: Option<Text>,
    /// `false`: the parameter must be absent.
    pub present: bool,
}

impl QueryMatch {
    fn matches(&self, query: &str) -> bool {
        let value = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(name, _)| *name == self.name)
            .map(|(_, value)| value);
        match (&self.text, value) {
            (None, value) => value.is_some() == self.present,
            (Some(text), Some(value)) => text.matches(value),
            (Some(_), None) => false,
        }
    }
}

/// A condition on a cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CookieTest {
    /// Name of the cookie.
    pub name: String,
    /// The comparison.
    pub text: Text,
    /// Negates the outcome. A cookie that is not there fits no comparison.
    pub invert: bool,
}

/// The value of a cookie (RFC 6265 5.4).
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"'))
}

/// All conditions of a route: every one must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteMatch {
    /// On the path.
    pub path: PathMatch,
    /// Whether the case of the path matters. Not for expressions.
    pub case_sensitive: bool,
    /// On headers.
    pub headers: Vec<HeaderTest>,
    /// On the query.
    pub query: Vec<QueryMatch>,
    /// On cookies.
    pub cookies: Vec<CookieTest>,
    /// It is a gRPC request.
    pub grpc: bool,
    /// It is among so many.
    pub fraction: Option<Fraction>,
}

impl RouteMatch {
    /// Whether the request takes this route. `ticket` is the same random number for all routes.
    pub fn matches(&self, request: &RequestView<'_>, ticket: u64) -> bool {
        (request.method == "CONNECT") == (self.path == PathMatch::Connect)
            && self.path.matches(request.path(), self.case_sensitive)
            && self.headers.iter().all(|h| h.matches(request))
            && (self.query.is_empty() || {
                let query = request.query();
                self.query.iter().all(|q| q.matches(query))
            })
            && self.cookies.iter().all(|test| {
                cookie(request.headers, &test.name).is_some_and(|v| test.text.matches(v)) != test.invert
            })
            && (!self.grpc || is_grpc(request.headers))
            && self.fraction.is_none_or(|fraction| fraction.takes_ticket(ticket))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::TextMatch;

    fn request<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView { method: "GET", scheme: "http", authority: "pay.shop", path_and_query: path, headers }
    }

    fn on_path(path: PathMatch) -> RouteMatch {
        RouteMatch {
            path,
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            cookies: vec![],
            grpc: false,
            fraction: None,
        }
    }

    #[test]
    fn a_separated_prefix_ends_at_a_slash() {
        let route = on_path(PathMatch::SeparatedPrefix("/api".into()));
        let headers = HeaderMap::new();
        for (path, expected) in
            [("/api", true), ("/api/x", true), ("/api?x=1", true), ("/apix", false), ("/ap", false)]
        {
            assert_eq!(route.matches(&request(path, &headers), 0), expected, "{path}");
        }
    }

    #[test]
    fn the_query_is_no_part_of_the_path() {
        let headers = HeaderMap::new();
        assert!(on_path(PathMatch::Exact("/a".into())).matches(&request("/a?b=c", &headers), 0));
        let regex = FullRegex::new("/a/[0-9]+").unwrap();
        assert!(on_path(PathMatch::Regex(regex)).matches(&request("/a/12?b", &headers), 0));
    }

    #[test]
    fn a_prefix_that_cuts_a_character_is_no_panic() {
        let headers = HeaderMap::new();
        assert!(!on_path(PathMatch::Prefix("/a".into())).matches(&request("/é", &headers), 0));
    }

    #[test]
    fn headers_are_compared_joined_and_an_absent_one_equals_nothing() {
        let mut headers = HeaderMap::new();
        headers.append("x-v", HeaderValue::from_static("1"));
        headers.append("x-v", HeaderValue::from_static("2"));
        let test = |name: &'static str, text: Option<&str>, present, invert, missing_as_empty| {
            HeaderTest {
                header: HeaderMatch::Name(HeaderName::from_static(name)),
                text: text.map(|t| Text::new(TextMatch::Exact(t.into()))),
                present,
                invert,
                missing_as_empty,
            }
            .matches(&request("/", &headers))
        };
        assert!(test("x-v", Some("1,2"), true, false, false));
        assert!(!test("x-v", Some("1"), true, false, false));
        assert!(test("x-v", Some("1"), true, true, false));
        assert!(!test("x-w", Some("1"), true, false, false));
        assert!(test("x-w", Some("1"), true, true, false));
        assert!(test("x-w", Some(""), true, false, true));
        assert!(test("x-v", None, true, false, false));
        assert!(test("x-w", None, false, false, false));
        assert!(!test("x-w", None, false, true, false));
    }

    #[test]
    fn cookies_shares_grpc_and_connect_are_conditions() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("a=1; canary=\"yes\"; b"));
        let mut route = on_path(PathMatch::Prefix("/".into()));
        let text = Text::new(TextMatch::Exact("yes".into()));
        route.cookies.push(CookieTest { name: "canary".into(), text, invert: false });
        assert!(route.matches(&request("/", &headers), 0));
        assert!(!route.matches(&request("/", &HeaderMap::new()), 0));
        route.fraction = Some(Fraction { numerator: 10, of: 100 });
        assert!(route.matches(&request("/", &headers), 109) && !route.matches(&request("/", &headers), 110));
        route.grpc = true;
        assert!(!route.matches(&request("/", &headers), 0));
        headers.insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        assert!(route.matches(&request("/", &headers), 0));
        let connect = RequestView { method: "CONNECT", ..request("/", &headers) };
        assert!(!route.matches(&connect, 0));
        route.path = PathMatch::Connect;
        assert!(route.matches(&connect, 0) && !route.matches(&request("/", &headers), 0));
    }

    #[test]
    fn query_parameters_are_found_by_name() {
        let headers = HeaderMap::new();
        let mut route = on_path(PathMatch::Prefix("/".into()));
        route.query.push(QueryMatch {
            name: "v".into(),
            text: Some(Text::new(TextMatch::Exact("2".into()))),
            present: true,
        });
        assert!(route.matches(&request("/?a&v=2", &headers), 0));
        assert!(!route.matches(&request("/?v=22", &headers), 0));
        assert!(!route.matches(&request("/", &headers), 0));
    }
}
