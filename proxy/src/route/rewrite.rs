//! New paths and locations.

use super::{PathMatch, PathRedirect, Redirect, RequestView};

/// Longest path, with query, that a rewrite may produce, in bytes. The same limit that the parser has.
const MAX_PATH: usize = 65_534;

/// The path and query after `prefix_rewrite`. For an expression, as in Envoy, there is no prefix to replace and
/// nothing changes.
pub fn rewrite_path(matched: &PathMatch, prefix_rewrite: &str, path_and_query: &str) -> Option<String> {
    let prefix = match matched {
        PathMatch::Prefix(p) | PathMatch::Exact(p) | PathMatch::SeparatedPrefix(p) => p,
        PathMatch::Regex(_) | PathMatch::Connect => return None,
    };
    let rest = path_and_query.get(prefix.len()..)?;
    // `/api` to `/` must make `/api/x` into `/x`, not `//x`, which would be an authority in a reference.
    let rest = if prefix_rewrite.ends_with('/') { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
    let rewritten = format!("{prefix_rewrite}{rest}");
    (rewritten.len() <= MAX_PATH).then_some(rewritten)
}

/// The `location` of a redirect.
pub fn redirect_location(redirect: &Redirect, matched: &PathMatch, request: &RequestView<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let (host, port) = split_port(request.authority);
    let host = redirect.host.as_deref().unwrap_or(host);
    let port = match (redirect.port, port) {
        (Some(port), _) => Some(port.to_string()),
        // The port that the client used belongs to the scheme and host it used.
        (None, Some(port)) if redirect.scheme.is_none() && redirect.host.is_none() => Some(port.to_owned()),
        (None, _) => None,
    };
    let port = port.filter(|p| !matches!((scheme, p.as_str()), ("http", "80") | ("https", "443")));
    let (path, query) = match request.path_and_query.split_once('?') {
        Some((path, query)) if !redirect.strip_query => (path, format!("?{query}")),
        Some((path, _)) => (path, String::new()),
        None => (request.path_and_query, String::new()),
    };
    let (path, query) = match &redirect.path {
        None => (path.to_owned(), query),
        // A query of its own takes the place of the request's.
        Some(PathRedirect::Full(full)) if full.contains('?') => (full.clone(), String::new()),
        Some(PathRedirect::Full(full)) => (full.clone(), query),
        Some(PathRedirect::Regex(substitution)) => (substitution.apply(path), query),
        Some(PathRedirect::Prefix(prefix)) => {
            (rewrite_path(matched, prefix, path).unwrap_or_else(|| path.to_owned()), query)
        }
    };
    let port = port.map(|p| format!(":{p}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}{query}")
}

/// Host and port of an authority. An IPv6 address keeps its brackets.
pub(crate) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_is_replaced_and_the_rest_kept() {
        let prefix = PathMatch::Prefix("/api".into());
        assert_eq!(rewrite_path(&prefix, "/v1", "/api/x?y=1").as_deref(), Some("/v1/x?y=1"));
        assert_eq!(rewrite_path(&prefix, "/", "/api/x").as_deref(), Some("/x"));
        assert_eq!(rewrite_path(&prefix, "/", "/api").as_deref(), Some("/"));
        assert_eq!(rewrite_path(&PathMatch::Exact("/a".into()), "/b", "/a?q").as_deref(), Some("/b?q"));
    }

    #[test]
    fn a_redirect_changes_only_what_it_names() {
        let headers = HeaderMap::new();
        let request = RequestView {
            method: "GET",
            scheme: "http",
            authority: "a.b:8080",
            path_and_query: "/x?y=1",
            headers: &headers,
        };
        let matched = PathMatch::Prefix("/".into());
        let none =
            Redirect { status: 301, scheme: None, host: None, port: None, path: None, strip_query: false };
        let to = |r: Redirect| redirect_location(&r, &matched, &request);
        assert_eq!(to(none.clone()), "http://a.b:8080/x?y=1");
        assert_eq!(to(Redirect { scheme: Some("https".into()), ..none.clone() }), "https://a.b/x?y=1");
        assert_eq!(to(Redirect { port: Some(80), ..none.clone() }), "http://a.b/x?y=1");
        assert_eq!(to(Redirect { host: Some("c".into()), strip_query: true, ..none.clone() }), "http://c/x");
        let full = Redirect { path: Some(PathRedirect::Full("/z".into())), ..none };
        assert_eq!(to(full), "http://a.b:8080/z?y=1");
    }

    #[test]
    fn only_a_port_is_split_off() {
        assert_eq!(split_port("a:80"), ("a", Some("80")));
        assert_eq!(split_port("[::1]:80"), ("[::1]", Some("80")));
        assert_eq!(split_port("::1"), ("::1", None));
        assert_eq!(split_port("a"), ("a", None));
        assert_eq!(split_port("a:"), ("a:", None));
    }

    proptest! {
        #[test]
        fn any_request_can_be_rewritten_or_redirected_without_panic(
            authority in ".*", path in ".*", prefix in ".*", rewrite in ".*",
        ) {
            let headers = HeaderMap::new();
            let request = RequestView {
                method: "GET", scheme: "http", authority: &authority, path_and_query: &path, headers: &headers,
            };
            let matched = PathMatch::Prefix(prefix);
            let _ = rewrite_path(&matched, &rewrite, &path);
            let redirect = Redirect {
                status: 302, scheme: None, host: None, port: None,
                path: Some(PathRedirect::Prefix(rewrite)), strip_query: false,
            };
            let _ = redirect_location(&redirect, &matched, &request);
        }
    }
}
