//! What an HTTPRoute rule matches.

use std::collections::BTreeSet;

use regex::RegexBuilder;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    HeaderMatch, HttpRouteMatch, PathMatch, ValueMatch,
    error::{At, Fault},
    re2,
};

/// The Gateway API's own limits.
const MAX_PATH: usize = 1024;
const MAX_VALUE: usize = 4096;
const MAX_HEADERS: usize = 16;
const MAX_NAME: usize = 256;
/// Memory of a compiled expression, so that no user's regex can make a proxy slow or large.
const MAX_REGEX_BYTES: usize = 256 * 1024;
const MAX_REGEX_NESTING: u32 = 32;
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireMatch {
    path: Option<WireValue>,
    #[serde(default)]
    headers: Vec<WireNamed>,
    #[serde(default)]
    query_params: Vec<WireNamed>,
    method: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireValue {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireNamed {
    r#type: Option<String>,
    name: String,
    value: String,
}

impl WireMatch {
    pub(super) fn parse(self, at: &At) -> Result<HttpRouteMatch, Fault> {
        let path = match self.path {
            Some(wire) => path(wire, &at.field("path"))?,
            None => PathMatch::Prefix("/".to_owned()),
        };
        if let Some(method) = &self.method
            && !METHODS.contains(&method.as_str())
        {
            return at.field("method").refuse(method, format!("must be one of {}", METHODS.join(", ")));
        }
        Ok(HttpRouteMatch {
            path,
            headers: named(self.headers, true, &at.field("headers"))?,
            query: named(self.query_params, false, &at.field("queryParams"))?,
            method: self.method,
        })
    }
}

fn path(wire: WireValue, at: &At) -> Result<PathMatch, Fault> {
    let value = wire.value.unwrap_or_else(|| "/".to_owned());
    let at_value = at.field("value");
    if value.len() > MAX_PATH {
        return at_value.refuse(&value, format!("must be at most {MAX_PATH} bytes"));
    }
    match wire.r#type.as_deref() {
        None | Some("PathPrefix") => {
            literal_path(&value, &at_value)?;
            // "/abc/" and "/abc" are the same prefix in the Gateway API.
            let trimmed = value.strip_suffix('/').unwrap_or(&value);
            Ok(PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.to_owned()))
        }
        Some("Exact") => {
            literal_path(&value, &at_value)?;
            Ok(PathMatch::Exact(value))
        }
        Some("RegularExpression") => {
            regex(&value, &at_value)?;
            Ok(PathMatch::Regex(value))
        }
        Some(other) => at.field("type").refuse(other, "must be Exact, PathPrefix or RegularExpression"),
    }
}

/// What proxies normalise away can't be matched reliably, so it may not be written.
fn literal_path(path: &str, at: &At) -> Result<(), Fault> {
    if !path.starts_with('/') {
        return at.refuse(path, "must begin with '/'");
    }
    let lower = path.to_ascii_lowercase();
    for bad in ["//", "/./", "/../", "%2f", "#", "?"] {
        if lower.contains(bad) {
            return at.refuse(path, format!("must not contain {bad:?}"));
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        return at.refuse(path, "must not end with a dot segment");
    }
    let bytes = path.as_bytes();
    let good = bytes.iter().enumerate().all(|(i, b)| match b {
        b'%' => bytes.get(i + 1..i + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
        _ => b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(b),
    });
    if good {
        Ok(())
    } else {
        at.refuse(path, "has a character that a URL path can't hold; percent-encode it")
    }
}

/// The expression must match the whole value, as in Envoy; the syntax is what RE2 and Rust's `regex` share.
pub(super) fn regex(text: &str, at: &At) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(at.missing());
    }
    RegexBuilder::new(text)
        .size_limit(MAX_REGEX_BYTES)
        .nest_limit(MAX_REGEX_NESTING)
        .build()
        .map(drop)
        .map_err(|error| {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            at.fault(text, format!("is not a regular expression that can be used: {last}"))
        })?;
    re2::check(text, MAX_REGEX_NESTING).map_err(|reason| {
        at.fault(text, format!("is not a regular expression that Envoy takes: it {reason}"))
    })
}

/// Header or query parameter conditions.
fn named(wire: Vec<WireNamed>, header: bool, at: &At) -> Result<Vec<HeaderMatch>, Fault> {
    at.at_most(&wire, MAX_HEADERS)?;
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (i, wire) in wire.into_iter().enumerate() {
        let at = at.index(i);
        let name = if header {
            header_name(&wire.name, &at.field("name"))?
        } else {
            query_name(wire.name, &at.field("name"))?
        };
        if !seen.insert(name.clone()) {
            return at.field("name").refuse(name, "is listed twice");
        }
        let at_value = at.field("value");
        if wire.value.len() > MAX_VALUE {
            return at_value.refuse(&wire.value, format!("must be at most {MAX_VALUE} bytes"));
        }
        let value = match wire.r#type.as_deref() {
            None | Some("Exact") => {
                if header {
                    header_value(&wire.value, &at_value)?;
                } else if wire.value.is_empty() {
                    return Err(at_value.missing());
                }
                ValueMatch::Exact(wire.value)
            }
            Some("RegularExpression") => {
                regex(&wire.value, &at_value)?;
                ValueMatch::Regex(wire.value)
            }
            Some(other) => return at.field("type").refuse(other, "must be Exact or RegularExpression"),
        };
        out.push(HeaderMatch { name, value });
    }
    Ok(out)
}

/// RFC 9110 token, in lower case.
pub(super) fn header_name(name: &str, at: &At) -> Result<String, Fault> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(token) {
        return at.refuse(name, "must be a header name: 1 to 256 letters, digits and !#$%&'*+-.^_`|~");
    }
    Ok(name.to_ascii_lowercase())
}

/// RFC 9110 field value; never empty, never with white space at its ends, which proxies strip.
pub(super) fn header_value(value: &str, at: &At) -> Result<(), Fault> {
    if value.is_empty() {
        return Err(at.missing());
    }
    let visible = |b: u8| (0x20..0x7f).contains(&b) || b == b'\t';
    if value.len() > MAX_VALUE || !value.bytes().all(visible) || value.trim() != value {
        return at.refuse(
            value,
            format!("must be 1 to {MAX_VALUE} printable ASCII characters without blanks at the ends"),
        );
    }
    Ok(())
}

fn query_name(name: String, at: &At) -> Result<String, Fault> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return at.refuse(name, "must be 1 to 256 characters");
    }
    Ok(name)
}

pub(super) fn render(route_match: &HttpRouteMatch) -> Value {
    let mut out = Map::new();
    let (kind, value) = match &route_match.path {
        PathMatch::Exact(value) => ("Exact", value),
        PathMatch::Prefix(value) => ("PathPrefix", value),
        PathMatch::Regex(value) => ("RegularExpression", value),
    };
    out.insert("path".to_owned(), json!({"type": kind, "value": value}));
    for (field, list) in [("headers", &route_match.headers), ("queryParams", &route_match.query)] {
        if !list.is_empty() {
            out.insert(field.to_owned(), list.iter().map(render_named).collect());
        }
    }
    if let Some(method) = &route_match.method {
        out.insert("method".to_owned(), json!(method));
    }
    Value::Object(out)
}

fn render_named(named: &HeaderMatch) -> Value {
    let (kind, value) = match &named.value {
        ValueMatch::Exact(value) => ("Exact", value),
        ValueMatch::Regex(value) => ("RegularExpression", value),
    };
    json!({"type": kind, "name": named.name, "value": value})
}
