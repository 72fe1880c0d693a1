//! What the model knows and nodes do not enforce yet. It is refused where objects come in, by the field's path: a
//! policy that is accepted and does nothing would be worse than none.

use serde_json::Value;

use super::{CiliumEntry, CiliumPeers, CiliumPolicy, Object, ObjectError};

const REASON: &str = "is not enforced by node agents yet";

impl Object {
    /// Parses an object that is to be in force.
    ///
    /// # Errors
    /// The first rule that it breaks, or what of it nothing would enforce.
    pub fn parse_enforced(value: &Value) -> Result<Self, ObjectError> {
        let object = Self::parse(value)?;
        let path = match &object {
            Object::CiliumNetworkPolicy(policy) | Object::CiliumClusterwideNetworkPolicy(policy) => {
                unenforced(policy)
            }
            _ => None,
        };
        match path {
            None => Ok(object),
            Some(path) => Err(ObjectError {
                object: object.key().to_string(),
                path,
                value: String::new(),
                reason: REASON.to_owned(),
            }),
        }
    }
}

/// The path of the first such field.
fn unenforced(policy: &CiliumPolicy) -> Option<String> {
    let rules = policy.spec.iter().map(|rule| ("spec".to_owned(), rule));
    let rules = rules.chain(policy.specs.iter().enumerate().map(|(i, rule)| (format!("specs[{i}]"), rule)));
    rules.into_iter().find_map(|(at, rule)| {
        let of = |(i, entry): (usize, &CiliumEntry)| {
            if matches!(entry.peers, CiliumPeers::Names(_)) {
                Some(format!("{at}.egress[{i}].toFQDNs"))
            } else if !entry.dns.is_empty() {
                Some(format!("{at}.egress[{i}].toPorts[].rules.dns"))
            } else {
                None
            }
        };
        rule.egress.allow.iter().enumerate().find_map(of)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    fn refused(kind: &str, namespace: Option<&str>, spec: Value) -> Result<(), String> {
        let mut object = json!({
            "apiVersion": "cilium.io/v2", "kind": kind, "metadata": { "name": "x" }, "spec": spec,
        });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        Object::parse(&object).expect("the model knows it");
        Object::parse_enforced(&object).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn what_nodes_do_not_enforce_is_refused_by_its_path() {
        let entry =
            |entry: Value| json!({ "endpointSelector": {}, "egress": [{ "toEntities": ["world"] }, entry] });
        let names = entry(json!({ "toFQDNs": [{ "matchName": "a.example" }] }));
        let error = refused("CiliumNetworkPolicy", Some("shop"), names).unwrap_err();
        assert!(error.contains("spec.egress[1].toFQDNs") && error.contains(REASON), "{error}");
        let ports = json!([{ "ports": [{ "port": "53" }], "rules": { "dns": [{ "matchPattern": "*" }] } }]);
        let asked = entry(json!({ "toPorts": ports }));
        let error = refused("CiliumNetworkPolicy", Some("shop"), asked).unwrap_err();
        assert!(error.contains("spec.egress[1].toPorts[].rules.dns"), "{error}");
    }

    #[test]
    fn everything_else_is_taken() {
        let spec = json!({ "endpointSelector": {}, "egress": [{ "toEntities": ["world"] }] });
        assert_eq!(refused("CiliumNetworkPolicy", Some("shop"), spec), Ok(()));
        let nodes = json!({ "nodeSelector": {}, "ingress": [{ "fromEntities": ["all"] }] });
        assert_eq!(refused("CiliumClusterwideNetworkPolicy", None, nodes), Ok(()));
    }
}
