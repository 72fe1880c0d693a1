//! `Metadata` and `google.protobuf.Struct`: one namespace as plain values.

use serde_json::{Number, Value};
use xds_proto::{
    envoy::config::core::v3::Metadata as WireMetadata,
    google::protobuf::{Struct, Value as WireValue, value::Kind},
};

use super::{error::Path, wire::Result};
use crate::balance::Metadata;

/// Deepest nesting of a value.
const MAX_DEPTH: usize = 8;

/// A whole message.
pub(super) fn object(path: &Path<'_>, wire: Struct) -> Result<Metadata> {
    wire.fields.into_iter().map(|(key, v)| Ok((key.clone(), value(&path.key(&key), v, 0)?))).collect()
}

/// One namespace; the others are for others.
pub(super) fn namespace(path: &Path<'_>, wire: Option<&WireMetadata>, name: &str) -> Result<Metadata> {
    match wire.and_then(|wire| wire.filter_metadata.get(name)) {
        None => Ok(Metadata::new()),
        Some(wire) => object(&path.field("filter_metadata").key(name), wire.clone()),
    }
}

fn value(path: &Path<'_>, wire: WireValue, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(path.invalid("value", format!("is nested more than {MAX_DEPTH} times")));
    }
    Ok(match wire.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(on)) => Value::Bool(on),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => {
            Value::Number(Number::from_f64(number).ok_or_else(|| path.invalid(number, "is no number"))?)
        }
        Some(Kind::ListValue(list)) => {
            list.values.into_iter().map(|v| value(path, v, depth + 1)).collect::<Result<_>>()?
        }
        Some(Kind::StructValue(object)) => {
            let fields = object.fields.into_iter();
            Value::Object(
                fields
                    .map(|(key, v)| Ok((key.clone(), value(&path.key(&key), v, depth + 1)?)))
                    .collect::<Result<_>>()?,
            )
        }
    })
}
