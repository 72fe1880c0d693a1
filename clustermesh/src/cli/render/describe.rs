//! One object in full.

use serde_json::Value;

use super::{age::age, yaml};
use crate::cli::{
    failure::Failure,
    object::{self, text},
    out::{Paint, Tone},
};

/// Kubernetes objects that have their content beside `spec` (EndpointSlice) show it as well.
const OUTLINE: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// `describe`: names and revision first, then spec and status.
pub(crate) fn render(o: &Value, now: u64, paint: Paint) -> Result<String, Failure> {
    let mut out = String::new();
    let mut field = |name: &str, values: Vec<String>| {
        let values = if values.is_empty() { vec!["<none>".to_owned()] } else { values };
        for (i, value) in values.iter().enumerate() {
            let head = if i == 0 { format!("{name}:") } else { String::new() };
            let fill = 14_usize.saturating_sub(head.len());
            let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            out.push_str(&format!("{}{}{value}\n", paint.paint(Tone::Heading, &head), " ".repeat(fill)));
        }
    };
    let one = |pointer: &str| match text(o, pointer) {
        "" => Vec::new(),
        value => vec![value.to_owned()],
    };
    field("Name", one("/metadata/name"));
    field("Namespace", one("/metadata/namespace"));
    field("Kind", vec![format!("{} ({})", object::kind(o), text(o, "/apiVersion"))]);
    field("Labels", pairs(o.pointer("/metadata/labels")));
    field("Annotations", pairs(o.pointer("/metadata/annotations")));
    field("Revision", one("/metadata/resourceVersion"));
    field("UID", one("/metadata/uid"));
    let created = one("/metadata/creationTimestamp");
    let ago = age(object::created_unix(o), now);
    field("Created", created.into_iter().map(|at| format!("{at} ({ago} ago)")).collect());
    for (key, value) in o.as_object().into_iter().flatten() {
        if !OUTLINE.contains(&key.as_str()) {
            section(&mut out, key, value, paint)?;
        }
    }
    if let Some(status) = o.get("status") {
        section(&mut out, "status", status, paint)?;
    }
    Ok(out)
}

fn section(out: &mut String, key: &str, value: &Value, paint: Paint) -> Result<(), Failure> {
    let mut title: String = key.chars().take(1).flat_map(char::to_uppercase).collect();
    title.extend(key.chars().skip(1));
    title.push(':');
    out.push_str(&paint.paint(Tone::Heading, &title));
    let empty = match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if empty {
        out.push_str(" <none>\n");
        return Ok(());
    }
    out.push('\n');
    for line in yaml(value)?.lines() {
        out.push_str("  ");
        out.push_str(line);
        out.push('\n');
    }
    Ok(())
}

fn pairs(value: Option<&Value>) -> Vec<String> {
    let map = value.and_then(Value::as_object);
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_shown_with_its_revision_spec_and_status() {
        let o = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "pay", "namespace": "shop", "resourceVersion": "42", "uid": "u-1",
                "creationTimestamp": "2026-09-21T14:13:00Z",
                "labels": {"app": "pay", "tier": "back"},
            },
            "spec": {"ports": [{"name": "http", "port": 80}]},
            "status": {"exported": true, "endpoints": []},
        });
        assert_eq!(
            render(&o, 1_790_000_000, Paint::PLAIN).unwrap(),
            "Name:         pay\n\
             Namespace:    shop\n\
             Kind:         Service (v1)\n\
             Labels:       app=pay\n\
             \x20             tier=back\n\
             Annotations:  <none>\n\
             Revision:     42\n\
             UID:          u-1\n\
             Created:      2026-09-21T14:13:00Z (20s ago)\n\
             Spec:\n\
             \x20 ports:\n\
             \x20 - name: http\n\
             \x20   port: 80\n\
             Status:\n\
             \x20 endpoints: []\n\
             \x20 exported: true\n"
        );
    }

    #[test]
    fn content_beside_the_spec_is_shown_too() {
        let o = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.5"]}], "ports": []});
        let text = render(&o, 0, Paint::PLAIN).unwrap();
        assert!(text.contains("AddressType:\n  IPv4\n"), "{text}");
        assert!(text.contains("Ports: <none>\n"), "{text}");
        assert!(text.contains("10.1.0.5"), "{text}");
    }
}
