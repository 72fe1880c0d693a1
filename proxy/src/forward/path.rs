//! Paths written in one way only, so that what is judged is what the application sees. Pure.

use http::uri::PathAndQuery;

use crate::config::{Edge, EscapedSlashes};

/// What is to be done with a request's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Normal {
    /// It stays as it is.
    Same,
    /// It is this.
    Path(PathAndQuery),
    /// The client is to ask for this.
    Redirect(String),
    /// It is not served.
    Refused,
}

/// Writes a path as `edge` wants it. The query stays as it is.
pub(super) fn normalize(path_and_query: &PathAndQuery, edge: &Edge) -> Normal {
    let whole = path_and_query.as_str();
    let (path, query) = whole.split_at(whole.find('?').unwrap_or(whole.len()));
    let mut new = path.to_owned();
    let mut redirect = false;
    if edge.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(&new)
    {
        match edge.escaped_slashes {
            EscapedSlashes::Reject => return Normal::Refused,
            EscapedSlashes::Redirect => redirect = true,
            EscapedSlashes::Keep | EscapedSlashes::Unescape => {}
        }
        new = unescaped;
    }
    if edge.normalize_path {
        match canonical(&new) {
            Some(canonical) => new = canonical,
            None => return Normal::Refused,
        }
    }
    // After the dots: what they leave may be empty segments.
    if edge.merge_slashes {
        new = merge_slashes(&new);
    }
    if redirect {
        return Normal::Redirect(format!("{new}{query}"));
    }
    if new == path {
        return Normal::Same;
    }
    format!("{new}{query}").parse().map_or(Normal::Refused, Normal::Path)
}

fn hex(byte: Option<&u8>) -> Option<u8> {
    byte.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok())
}

/// The byte that `%xx` at this place stands for.
fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    if bytes.get(at) != Some(&b'%') {
        return None;
    }
    Some(hex(bytes.get(at + 1))? << 4 | hex(bytes.get(at + 2))?)
}

/// `%2F` and `%5C` as what they stand for, if there are any.
fn unescape_slashes(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut new = String::with_capacity(path.len());
    let (mut from, mut found) = (0, false);
    while let Some(step) = path.get(from..).and_then(|rest| rest.find('%')) {
        let at = from + step;
        new.push_str(path.get(from..at).unwrap_or_default());
        match escaped(bytes, at) {
            Some(byte @ (b'/' | b'\\')) => {
                found = true;
                new.push(char::from(byte));
                from = at + 3;
            }
            _ => {
                new.push('%');
                from = at + 1;
            }
        }
    }
    new.push_str(path.get(from..).unwrap_or_default());
    found.then_some(new)
}

/// RFC 3986 6.2.2: characters that need no escape are not escaped, and dot segments are resolved. As in browsers and
/// Envoy, `\` is `/`. `None` for what is no path.
fn canonical(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return (path == "*").then(|| path.to_owned());
    }
    let bytes = path.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match escaped(bytes, at) {
            // A path that means something else to those who end texts there.
            Some(0) => return None,
            Some(byte)
                if (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) && !opens_escape(&plain) =>
            {
                plain.push(byte);
                at += 3;
                continue;
            }
            _ => {}
        }
        plain.push(if *byte == b'\\' { b'/' } else { *byte });
        at += 1;
    }
    let plain = String::from_utf8(plain).ok()?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = plain.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." if last => segments.push(""),
            "." => {}
            ".." => {
                segments.pop();
                if last {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

/// Whether a digit more would make an escape of what was none: `%2%65` must not become `%2e`.
fn opens_escape(plain: &[u8]) -> bool {
    matches!(plain, [.., b'%'] | [.., b'%', _])
}

fn merge_slashes(path: &str) -> String {
    let mut new = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !new.ends_with('/') {
            new.push(char);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edge(escaped_slashes: EscapedSlashes) -> Edge {
        Edge { normalize_path: true, merge_slashes: true, escaped_slashes, ..Edge::default() }
    }

    fn path(text: &str) -> PathAndQuery {
        text.parse().unwrap()
    }

    #[test]
    fn rfc3986_6_2_2_every_way_to_write_a_path_becomes_the_same() {
        for (written, expected) in [
            ("/a/../b", "/b"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/../../../../c", "/c"),
            ("/a/b/..", "/a/"),
            ("/a/%2E%2e/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("//admin", "/admin"),
            ("/x/..//admin//", "/admin/"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a/..%2fadmin", "/a/..%2fadmin"),
            ("/a?b=/../c//d", "/a?b=/../c//d"),
            ("/%c0%af/%25", "/%c0%af/%25"),
            ("/%zz%", "/%zz%"),
            ("/.../..a", "/.../..a"),
            ("/%2%65%2%65/x", "/%2%65%2%65/x"),
            ("/%25%32%65", "/%252e"),
        ] {
            let found = match normalize(&path(written), &edge(EscapedSlashes::Keep)) {
                Normal::Same => written.to_owned(),
                Normal::Path(path) => path.as_str().to_owned(),
                other => panic!("{written}: {other:?}"),
            };
            assert_eq!(found, expected, "{written}");
        }
        assert_eq!(canonical("/a\\..\\b").as_deref(), Some("/b"));
        assert_eq!(normalize(&path("/a%00b"), &edge(EscapedSlashes::Keep)), Normal::Refused);
    }

    #[test]
    fn escaped_slashes_are_kept_refused_redirected_or_unescaped() {
        let written = path("/a%2F..%5Cadmin?x=%2F");
        assert_eq!(normalize(&written, &edge(EscapedSlashes::Reject)), Normal::Refused);
        let to = "/admin?x=%2F";
        assert_eq!(normalize(&written, &edge(EscapedSlashes::Redirect)), Normal::Redirect(to.to_owned()));
        assert_eq!(normalize(&written, &edge(EscapedSlashes::Unescape)), Normal::Path(path(to)));
        assert_eq!(normalize(&path("/a%20b"), &edge(EscapedSlashes::Reject)), Normal::Same);
        let off = Edge::default();
        assert_eq!(normalize(&path("/a/..//%2f"), &off), Normal::Same);
    }

    proptest! {
        #[test]
        fn a_normal_path_is_normal(text in "/([a-z/.%0-9A-F]|%2e|%2F|//){0,40}") {
            let Ok(written) = text.parse::<PathAndQuery>() else { return Ok(()) };
            if let Normal::Path(once) = normalize(&written, &edge(EscapedSlashes::Keep)) {
                prop_assert!(!once.as_str().contains("//") && !once.as_str().contains("/../"), "{}", once);
                prop_assert_eq!(normalize(&once, &edge(EscapedSlashes::Keep)), Normal::Same, "{}", once);
            }
        }
    }
}
