//! `request_headers_to_add` and its siblings.

use http::{HeaderName, HeaderValue, header};
use xds_proto::envoy::config::core::v3::{HeaderValue as WireHeader, HeaderValueOption};

use super::{
    error::Path,
    wire::{Result, refuse},
};
use crate::{
    format::Format,
    route::{HeaderChange, HeaderOps, OnExisting, Value},
};

/// Most headers that one level may add or remove.
const MAX_CHANGES: usize = 128;

pub(super) struct Fields<'a> {
    pub(super) add: &'a str,
    pub(super) remove: &'a str,
}

pub(super) const REQUEST: Fields<'static> =
    Fields { add: "request_headers_to_add", remove: "request_headers_to_remove" };
pub(super) const RESPONSE: Fields<'static> =
    Fields { add: "response_headers_to_add", remove: "response_headers_to_remove" };

pub(super) fn convert(
    path: &Path<'_>,
    fields: &Fields<'_>,
    add: Vec<HeaderValueOption>,
    remove: Vec<String>,
) -> Result<HeaderOps> {
    let (add_path, remove_path) = (path.field(fields.add), path.field(fields.remove));
    for (path, count) in [(&add_path, add.len()), (&remove_path, remove.len())] {
        if count > MAX_CHANGES {
            return Err(path.invalid(count, format!("entries are more than {MAX_CHANGES}")));
        }
    }
    let set = (0..).zip(add).map(|(at, option)| change(&add_path.index(at), option));
    let remove = (0..).zip(remove).map(|(at, text)| name(&remove_path.index(at), &text));
    Ok(HeaderOps { set: set.collect::<Result<_>>()?, remove: remove.collect::<Result<_>>()? })
}

#[allow(deprecated)]
fn change(path: &Path<'_>, wire: HeaderValueOption) -> Result<HeaderChange> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = wire;
    refuse!(path; keep_empty_value);
    let header_path = path.field("header");
    let WireHeader { key, value, raw_value } = header.ok_or_else(|| header_path.missing())?;
    let value_path = header_path.field("value");
    let literal = |bytes: &[u8]| {
        let literal = HeaderValue::from_bytes(bytes).map(Value::Literal);
        literal.map_err(|_| value_path.invalid(&value, "is no header value"))
    };
    let value = if !raw_value.is_empty() {
        literal(&raw_value)?
    } else if value.is_empty() {
        return Err(value_path.missing());
    } else {
        let format = Format::parse(&value).map_err(|e| value_path.invalid(&value, e))?;
        match format.literal() {
            Some(text) => literal(text.as_bytes())?,
            None => Value::Format(format),
        }
    };
    let on_existing = match (append.map(|a| a.value), append_action) {
        (Some(true), _) | (None, 0) => OnExisting::Append,
        (Some(false), _) | (None, 2) => OnExisting::Overwrite,
        (None, 1) => OnExisting::Keep,
        (None, 3) => OnExisting::OverwriteOnly,
        (None, other) => return Err(path.field("append_action").invalid(other, "is unknown")),
    };
    Ok(HeaderChange { name: name(&header_path.field("key"), &key)?, value, on_existing })
}

/// A header that may be changed: not one that frames or directs the message.
fn name(path: &Path<'_>, text: &str) -> Result<HeaderName> {
    let name: HeaderName = text.parse().map_err(|_| path.invalid(text, "is no header name"))?;
    let framing = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ];
    if framing.contains(&name) {
        return Err(path.invalid(text, "frames or directs the message and may not be changed here"));
    }
    Ok(name)
}

/// A header that is only read.
pub(super) fn header(path: &Path<'_>, text: &str) -> Result<HeaderName> {
    text.parse().map_err(|_| path.invalid(text, "is no header name"))
}

/// A literal host.
pub(super) fn host(path: &Path<'_>, text: &str) -> Result<Option<HeaderValue>> {
    if text.is_empty() {
        return Ok(None);
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| path.invalid(text, "is no host"))?;
    HeaderValue::from_str(authority.as_str()).map(Some).map_err(|_| path.invalid(text, "is no host"))
}
