//! What the control plane says about endpoints, and requests are matched by.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

/// One namespace of `Metadata`, by key.
pub type Metadata = BTreeMap<String, Value>;

/// What an endpoint must have: all of these, equal. With `list_as_any` one of a list is enough.
pub type Criteria = Arc<Metadata>;

/// Whether an endpoint has all that is wanted.
pub fn matches(wanted: &Metadata, has: &Metadata, list_as_any: bool) -> bool {
    wanted.iter().all(|(key, value)| match has.get(key) {
        None => false,
        Some(Value::Array(any)) if list_as_any => any.contains(value) || has.get(key) == Some(value),
        Some(other) => other == value,
    })
}
