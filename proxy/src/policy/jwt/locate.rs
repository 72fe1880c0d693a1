//! Where a request carries tokens.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Serialize, Serializer};

use crate::route::RequestView;

/// A place to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// A header, behind a prefix in its value.
    Header(#[serde(serialize_with = "name")] HeaderName, String),
    /// A query parameter.
    Param(String),
    /// A cookie.
    Cookie(String),
}

fn name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

/// What was found, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub location: Location,
    /// Perhaps a token.
    pub text: String,
}

/// Everything at these places.
pub fn find(request: &RequestView<'_>, locations: &[Location]) -> Vec<Found> {
    let found =
        |location: &Location| at(request, location).map(|text| Found { location: location.clone(), text });
    locations.iter().filter_map(found).filter(|found| !found.text.is_empty()).collect()
}

fn at(request: &RequestView<'_>, location: &Location) -> Option<String> {
    match location {
        Location::Header(name, prefix) => {
            let values: Vec<_> = request.headers.get_all(name).iter().map(HeaderValue::to_str).collect();
            let joined = values.into_iter().collect::<Result<Vec<_>, _>>().ok()?;
            if joined.is_empty() {
                return None;
            }
            behind(&joined.join(","), prefix)
        }
        Location::Param(name) => {
            let (_, query) = request.path_and_query.split_once('?')?;
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.to_owned())
        }
        Location::Cookie(name) => request
            .headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.trim_matches('"').to_owned()),
    }
}

/// With a prefix: from the first character behind it that may be of a token. Without: the value itself.
fn behind(value: &str, prefix: &str) -> Option<String> {
    if prefix.is_empty() {
        return Some(value.to_owned());
    }
    let rest = value.get(value.find(prefix)? + prefix.len()..)?;
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let Some(start) = rest.find(of_token) else { return Some(value.to_owned()) };
    rest.get(start..).map(str::to_owned)
}

/// Takes a token away; from a cookie it is not. Returns the new path and query if that has changed.
pub fn remove(location: &Location, headers: &mut HeaderMap, path_and_query: &str) -> Option<String> {
    match location {
        Location::Header(name, _) => {
            headers.remove(name);
            None
        }
        Location::Param(name) => {
            let (path, query) = path_and_query.split_once('?')?;
            let other = |pair: &&str| pair.split_once('=').is_none_or(|(key, _)| key != name);
            let rest: Vec<_> = query.split('&').filter(other).collect();
            Some(if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) })
        }
        Location::Cookie(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(path_and_query: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView { method: "GET", scheme: "http", authority: "a", path_and_query, headers }
    }

    #[test]
    fn tokens_are_found_behind_their_prefix_in_parameters_and_in_cookies() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer  a.b-c.d_, other"));
        headers.insert("x-raw", HeaderValue::from_static("a.b.c d"));
        headers.append("cookie", HeaderValue::from_static("x=1; t=\"q.r.s\""));
        let header = |name: &'static str, prefix: &str| {
            Location::Header(HeaderName::from_static(name), prefix.to_owned())
        };
        let text = |location: Location| {
            let found = find(&request("/a?x=1&t=k.l.m&t=other", &headers), &[location]);
            found.into_iter().next().map(|found| found.text)
        };
        assert_eq!(text(header("authorization", "Bearer ")).as_deref(), Some("a.b-c.d_, other"));
        assert_eq!(text(header("authorization", "Basic ")), None);
        assert_eq!(text(header("x-raw", "")).as_deref(), Some("a.b.c d"));
        assert_eq!(text(header("x-none", "")), None);
        assert_eq!(text(Location::Param("t".into())).as_deref(), Some("k.l.m"));
        assert_eq!(text(Location::Param("u".into())), None);
        assert_eq!(text(Location::Cookie("t".into())).as_deref(), Some("q.r.s"));
    }

    #[test]
    fn a_token_is_taken_out_of_the_query_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        let param = Location::Param("t".into());
        let mut rest = |path: &str| remove(&param, &mut headers, path);
        assert_eq!(rest("/a?x=1&t=2&y").as_deref(), Some("/a?x=1&y"));
        assert_eq!(rest("/a?t=2").as_deref(), Some("/a"));
        assert_eq!(rest("/a"), None);
    }
}
