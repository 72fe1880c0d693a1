//! Objects as they come from the control plane: JSON, read leniently.

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::failure::Failure;

/// Parses what the control plane sent.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|e| Failure::failed(format!("the control plane sent an object that is no JSON ({e})")))
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn kind(object: &Value) -> &str {
    text(object, "/kind")
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `service/pay`
pub(crate) fn reference(kind: &str, name: &str) -> String {
    format!("{}/{name}", kind.to_ascii_lowercase())
}

/// When it was created, seconds since 1970.
pub(crate) fn created_unix(object: &Value) -> Option<u64> {
    let text = text(object, "/metadata/creationTimestamp");
    OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|t| u64::try_from(t.unix_timestamp()).ok())
}
