//! `toPorts[].rules.http` of Cilium's policies: what requests are let through, by who reads them.
//!
//! As in Cilium, `method`, `path` and `host` are regular expressions that must match the whole of it, the path with its query.

use regex::RegexBuilder;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::super::{
    error::{At, Fault},
    http_match,
};

/// Headers of one rule.
const MAX_HEADERS: usize = 16;
/// Bytes of one expression or value.
const MAX_TEXT: usize = 1024;

/// What a request is like that is let through. What is left out is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HttpRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HttpRuleHeader>,
}

/// A header that must be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HttpRuleHeader {
    /// In lower case.
    pub name: String,
    /// What it must be; None: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A request, as far as rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HttpRequest<'a> {
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    pub host: &'a str,
    /// Names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Paths that an application may take for others than they say: what is allowed by path is not allowed by one of these.
/// For Rust's `regex` and RE2 alike; matches the whole path.
pub const AMBIGUOUS_PATH: &str = r"(?i)[^?]*(//|/\.\.?([/;?]|$)|\\|%2e|%2f|%5c|%00|;)(?s:.*)";

impl HttpRule {
    /// Whether it lets a request through. Slow: for the oracle.
    pub fn matches(&self, request: &HttpRequest<'_>) -> bool {
        let Self { method, path, host, headers } = self;
        let whole = |pattern: &Option<String>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| matches_whole(pattern, text))
        };
        whole(method, request.method)
            && whole(path, request.path)
            && (path.is_none() || !matches_whole(AMBIGUOUS_PATH, request.path))
            && whole(host, request.host)
            && headers.iter().all(|wanted| {
                let mut found = request.headers.iter().filter(|(name, _)| *name == wanted.name);
                match &wanted.value {
                    None => found.next().is_some(),
                    // As proxies join what comes several times: then it is another value.
                    Some(value) => {
                        matches!((found.next(), found.next()), (Some((_, is)), None) if is == value)
                    }
                }
            })
    }
}

fn matches_whole(pattern: &str, text: &str) -> bool {
    let pattern = RegexBuilder::new(&format!("^(?:{pattern})$")).build();
    pattern.is_ok_and(|pattern| pattern.is_match(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireHttp {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    header_matches: Vec<WireHeaderMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHeaderMatch {
    name: Option<String>,
    value: Option<String>,
    // Refused: they change requests, or read secrets.
    mismatch: Option<IgnoredAny>,
    secret: Option<IgnoredAny>,
}

impl WireHttp {
    pub(super) fn parse(self, at: &At) -> Result<HttpRule, Fault> {
        let expression = |field: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) if text.len() > MAX_TEXT => {
                at.field(field).refuse(&text, format!("must be at most {MAX_TEXT} bytes"))
            }
            Some(text) => http_match::regex(&text, &at.field(field)).map(|()| Some(text)),
        };
        let at_headers = at.field("headers");
        at_headers.at_most(&self.headers, MAX_HEADERS)?;
        let mut headers = Vec::new();
        for (i, text) in self.headers.into_iter().enumerate() {
            let at = at_headers.index(i);
            // As Cilium reads it: `Name: value`, `Name value`, or the name alone.
            let (name, value) = match text.split_once([':', ' ']) {
                Some((name, value)) => (name, Some(value.trim()).filter(|value| !value.is_empty())),
                None => (text.as_str(), None),
            };
            headers.push(header(name, value, &at, &at)?);
        }
        let at_matches = at.field("headerMatches");
        at_matches.at_most(&self.header_matches, MAX_HEADERS)?;
        for (i, wire) in self.header_matches.into_iter().enumerate() {
            let at = at_matches.index(i);
            at.unsupported(&[("mismatch", wire.mismatch.is_some()), ("secret", wire.secret.is_some())])?;
            let at_name = at.field("name");
            let name = wire.name.ok_or_else(|| at_name.missing())?;
            let value = wire.value.as_deref().filter(|value| !value.is_empty());
            headers.push(header(&name, value, &at_name, &at.field("value"))?);
        }
        Ok(HttpRule {
            method: expression("method", self.method)?,
            path: expression("path", self.path)?,
            host: expression("host", self.host)?,
            headers,
        })
    }
}

fn header(name: &str, value: Option<&str>, at_name: &At, at_value: &At) -> Result<HttpRuleHeader, Fault> {
    let name = http_match::header_name(name, at_name)?;
    let visible = |c: char| c == ' ' || c.is_ascii_graphic();
    match value {
        Some(value) if value.len() > MAX_TEXT || !value.chars().all(visible) => {
            at_value.refuse(value, format!("must be at most {MAX_TEXT} visible characters of ASCII"))
        }
        value => Ok(HttpRuleHeader { name, value: value.map(str::to_owned) }),
    }
}

pub(super) fn render(rule: &HttpRule) -> Value {
    let HttpRule { method, path, host, headers } = rule;
    let mut out = serde_json::Map::new();
    for (field, text) in [("method", method), ("path", path), ("host", host)] {
        if let Some(text) = text {
            out.insert(field.to_owned(), json!(text));
        }
    }
    if !headers.is_empty() {
        let one = |header: &HttpRuleHeader| match &header.value {
            Some(value) => json!({"name": header.name, "value": value}),
            None => json!({"name": header.name}),
        };
        out.insert("headerMatches".to_owned(), headers.iter().map(one).collect());
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_must_be_what_is_said_as_a_whole() {
        let request = HttpRequest {
            method: "GET",
            path: "/v1/cards?all=1",
            host: "pay.shop",
            headers: &[("x-team", "web"), ("x-twice", "a"), ("x-twice", "b")],
        };
        let text = |text: &str| Some(text.to_owned());
        let rule = |edit: &dyn Fn(&mut HttpRule)| {
            let mut rule = HttpRule::default();
            edit(&mut rule);
            rule.matches(&request)
        };
        assert!(rule(&|_| {}));
        assert!(rule(&|r| (r.method, r.path) = (text("GET|HEAD"), text("/v1/.*"))));
        assert!(!rule(&|r| r.method = text("GE")));
        assert!(!rule(&|r| r.path = text("/v1/cards")), "the query is part of it, as in Cilium");
        assert!(!rule(&|r| r.host = text("pay")));
        let header = |name: &str, value: Option<&str>| {
            let header = HttpRuleHeader { name: name.to_owned(), value: value.map(str::to_owned) };
            rule(&|r| r.headers = vec![header.clone()])
        };
        assert!(header("x-team", None) && header("x-team", Some("web")));
        assert!(!header("x-team", Some("we")) && !header("x-none", None));
        assert!(!header("x-twice", Some("a")) && header("x-twice", None));
    }

    #[test]
    fn what_an_application_may_take_for_another_path_is_not_allowed_by_its_path() {
        let rule = HttpRule { path: Some("/public/.*".to_owned()), ..HttpRule::default() };
        let any = HttpRule::default();
        let allowed = |rule: &HttpRule, path| {
            rule.matches(&HttpRequest { method: "GET", path, host: "a", headers: &[] })
        };
        for path in ["/public/a", "/public/a.b", "/public/.hidden", "/public/a?x=/../b", "/public/a%20b"] {
            assert!(allowed(&rule, path), "{path}");
        }
        for path in [
            "/public/../admin",
            "/public/..",
            "/public/./a",
            "/public//a",
            "/public/%2e%2E/a",
            "/public/%2Fa",
            "/public/..\\a",
            "/public/a;x=1",
            "/public/..?x",
        ] {
            assert!(!allowed(&rule, path), "{path}");
            assert!(allowed(&any, path), "{path}: whoever may ask for anything may ask for it");
        }
    }
}
