//! JSON as `google.protobuf.Struct`, and back.

use serde_json::{Map, Number, Value};
use xds_proto::google::protobuf::{ListValue, Struct, Value as Wire, value::Kind};

/// Deepest value that is taken over.
const MAX_DEPTH: u32 = 32;

pub(super) fn to_struct(map: &Map<String, Value>) -> Struct {
    Struct { fields: map.iter().map(|(key, value)| (key.clone(), to_wire(value))).collect() }
}

fn to_wire(value: &Value) -> Wire {
    Wire {
        kind: Some(match value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(yes) => Kind::BoolValue(*yes),
            Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::Array(all) => Kind::ListValue(ListValue { values: all.iter().map(to_wire).collect() }),
            Value::Object(map) => Kind::StructValue(to_struct(map)),
        }),
    }
}

pub(super) fn from_struct(wire: Struct) -> Map<String, Value> {
    map(wire, 0)
}

fn map(wire: Struct, depth: u32) -> Map<String, Value> {
    wire.fields.into_iter().map(|(key, value)| (key, from_wire(value, depth + 1))).collect()
}

fn from_wire(wire: Wire, depth: u32) -> Value {
    match wire.kind {
        _ if depth > MAX_DEPTH => Value::Null,
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(yes)) => Value::Bool(yes),
        Some(Kind::NumberValue(number)) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(|one| from_wire(one, depth + 1)).collect(),
        Some(Kind::StructValue(inner)) => Value::Object(map(inner, depth)),
    }
}
