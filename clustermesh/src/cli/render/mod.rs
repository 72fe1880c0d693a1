//! Data in, text out. Nothing here reads a clock, a terminal or the network.

pub(crate) mod age;
pub(crate) mod columns;
pub(crate) mod describe;
pub(crate) mod flow;
pub(crate) mod proxy_status;
pub(crate) mod replicas;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod wait;

use serde_json::{Value, json};

use super::failure::Failure;

/// `-o yaml`
pub(crate) fn yaml(value: &Value) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|e| Failure::failed(format!("cannot write this as YAML: {e}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// `-o json`
pub(crate) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Several objects as one, the way kubectl does it.
pub(crate) fn list(objects: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects })
}
