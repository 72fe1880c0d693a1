//! What an HTTPRoute rule does to requests and responses.

use std::collections::BTreeSet;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use super::{
    HttpRouteFilter,
    error::{At, Fault},
    http_match::{header_name, header_value},
};

const MAX_HEADERS: usize = 16;
/// Headers that decide where a message ends or goes: no proxy lets a route touch them.
const RESERVED: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "upgrade",
    "keep-alive",
    "x-forwarded-client-cert",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct WireFilter {
    r#type: String,
    request_header_modifier: Option<WireModifier>,
    response_header_modifier: Option<WireModifier>,
    // Known to the Gateway API; their types are refused by name below.
    request_redirect: Option<IgnoredAny>,
    request_mirror: Option<IgnoredAny>,
    #[serde(rename = "urlRewrite")]
    url_rewrite: Option<IgnoredAny>,
    cors: Option<IgnoredAny>,
    external_auth: Option<IgnoredAny>,
    extension_ref: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireModifier {
    #[serde(default)]
    set: Vec<WireHeader>,
    #[serde(default)]
    add: Vec<WireHeader>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHeader {
    name: String,
    value: String,
}

type Changes = (Vec<(String, String)>, Vec<(String, String)>, Vec<String>);

impl WireFilter {
    pub(super) fn parse(self, at: &At) -> Result<HttpRouteFilter, Fault> {
        let (request, field, wire, other) = match self.r#type.as_str() {
            "RequestHeaderModifier" => {
                (true, "requestHeaderModifier", self.request_header_modifier, self.response_header_modifier)
            }
            "ResponseHeaderModifier" => {
                (false, "responseHeaderModifier", self.response_header_modifier, self.request_header_modifier)
            }
            other => {
                return at
                    .field("type")
                    .refuse(other, "is not supported; RequestHeaderModifier and ResponseHeaderModifier are");
            }
        };
        let stray = [
            ("requestRedirect", self.request_redirect.is_some()),
            ("requestMirror", self.request_mirror.is_some()),
            ("urlRewrite", self.url_rewrite.is_some()),
            ("cors", self.cors.is_some()),
            ("externalAuth", self.external_auth.is_some()),
            ("extensionRef", self.extension_ref.is_some()),
            (if request { "responseHeaderModifier" } else { "requestHeaderModifier" }, other.is_some()),
        ];
        if let Some((name, _)) = stray.iter().find(|(_, present)| *present) {
            return at.field(name).refuse("", format!("does not belong to a filter of type {}", self.r#type));
        }
        let at = at.field(field);
        let (set, add, remove) = wire.ok_or_else(|| at.missing())?.parse(&at)?;
        Ok(if request {
            HttpRouteFilter::RequestHeaders { set, add, remove }
        } else {
            HttpRouteFilter::ResponseHeaders { set, add, remove }
        })
    }
}

impl WireModifier {
    fn parse(self, at: &At) -> Result<Changes, Fault> {
        let mut seen = BTreeSet::new();
        let mut name = |text: &str, at: &At| {
            let name = header_name(text, at)?;
            if RESERVED.contains(&name.as_str()) {
                return at.refuse(text, "can't be changed by a route");
            }
            if !seen.insert(name.clone()) {
                return at.refuse(text, "is changed twice by the same filter");
            }
            Ok(name)
        };
        let mut pairs = |wire: Vec<WireHeader>, at: &At| -> Result<Vec<(String, String)>, Fault> {
            at.at_most(&wire, MAX_HEADERS)?;
            wire.into_iter()
                .enumerate()
                .map(|(i, header)| {
                    let at = at.index(i);
                    header_value(&header.value, &at.field("value"))?;
                    Ok((name(&header.name, &at.field("name"))?, header.value))
                })
                .collect()
        };
        let set = pairs(self.set, &at.field("set"))?;
        let add = pairs(self.add, &at.field("add"))?;
        let at = at.field("remove");
        at.at_most(&self.remove, MAX_HEADERS)?;
        let remove = self
            .remove
            .iter()
            .enumerate()
            .map(|(i, text)| name(text, &at.index(i)))
            .collect::<Result<_, _>>()?;
        Ok((set, add, remove))
    }
}

pub(super) fn render(filter: &HttpRouteFilter) -> Value {
    let (kind, field, set, add, remove) = match filter {
        HttpRouteFilter::RequestHeaders { set, add, remove } => {
            ("RequestHeaderModifier", "requestHeaderModifier", set, add, remove)
        }
        HttpRouteFilter::ResponseHeaders { set, add, remove } => {
            ("ResponseHeaderModifier", "responseHeaderModifier", set, add, remove)
        }
    };
    let mut changes = Map::new();
    for (field, list) in [("set", set), ("add", add)] {
        if !list.is_empty() {
            let all: Vec<Value> =
                list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
            changes.insert(field.to_owned(), Value::Array(all));
        }
    }
    if !remove.is_empty() {
        changes.insert("remove".to_owned(), json!(remove));
    }
    json!({"type": kind, field: changes})
}
