//! Cilium's selectors: labels with a source before them, and pseudo labels for what is no label of a workload.

use super::{
    super::{
        LabelExpression, LabelSelector, Labels, NAMESPACE_NAME_LABEL, check,
        error::{At, Fault},
        selector::{MAX_EXPRESSIONS, WireSelector},
    },
    CiliumSelector,
};
use crate::identity::is_policy_label;

/// Where Cilium puts a workload's namespace.
pub(super) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Before the labels of a workload's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// What a key is about.
enum Key {
    Pod(String),
    /// A label of its namespace.
    Namespace(String),
}

/// Reads one key; `k8s:x`, `any:x` and `x` are the same.
fn key(text: &str, at: &At) -> Result<Key, Fault> {
    let plain = match text.split_once(':') {
        None => text,
        Some(("k8s" | "any", plain)) => plain,
        Some(("reserved", _)) => {
            return at.refuse(text, "is not supported in a selector: write it in fromEntities or toEntities");
        }
        Some(_) => return at.refuse(text, "has a source that is not supported: write k8s: or any:"),
    };
    if plain == NAMESPACE {
        return Ok(Key::Namespace(NAMESPACE_NAME_LABEL.to_owned()));
    }
    if let Some(label) = plain.strip_prefix(NAMESPACE_LABELS) {
        return Ok(Key::Namespace(label.to_owned()));
    }
    if plain.starts_with("io.cilium.") {
        return at.refuse(text, "is not supported: only labels of workloads and their namespace are");
    }
    if !is_policy_label(plain) {
        return at
            .refuse(text, "is a label that differs per copy of a workload and is no part of its identity");
    }
    Ok(Key::Pod(plain.to_owned()))
}

pub(super) fn parse(wire: WireSelector, at: &At) -> Result<CiliumSelector, Fault> {
    let (mut pods, mut namespaces) = (LabelSelector::default(), LabelSelector::default());
    let at_labels = at.field("matchLabels");
    for (text, value) in wire.match_labels {
        let at = at_labels.key(&text);
        let (labels, plain) = match key(&text, &at)? {
            Key::Pod(plain) => (&mut pods.match_labels, plain),
            Key::Namespace(plain) => (&mut namespaces.match_labels, plain),
        };
        if labels.insert(plain, value).is_some() {
            return at.refuse(text, "is the same label as another one of this selector");
        }
    }
    check::labels(&pods.match_labels, &at_labels)?;
    check::labels(&namespaces.match_labels, &at_labels)?;
    let at = at.field("matchExpressions");
    at.at_most(&wire.match_expressions, MAX_EXPRESSIONS)?;
    for (i, mut expression) in wire.match_expressions.into_iter().enumerate() {
        let at = at.index(i);
        let (list, plain) = match key(&expression.key, &at.field("key"))? {
            Key::Pod(plain) => (&mut pods.match_expressions, plain),
            Key::Namespace(plain) => (&mut namespaces.match_expressions, plain),
        };
        expression.key = plain;
        list.push(expression.parse(&at)?);
    }
    let says = namespaces != LabelSelector::default();
    Ok(CiliumSelector { pods, namespaces: says.then_some(namespaces) })
}

/// A selector of nodes or of services, whose labels have no source but Kubernetes.
pub(super) fn plain(mut wire: WireSelector, at: &At) -> Result<LabelSelector, Fault> {
    let stripped =
        |text: &str| text.strip_prefix("k8s:").or(text.strip_prefix("any:")).unwrap_or(text).to_owned();
    let mut labels = Labels::new();
    for (text, value) in wire.match_labels {
        if labels.insert(stripped(&text), value).is_some() {
            return at
                .field("matchLabels")
                .key(&text)
                .refuse(text, "is the same label as another one of this selector");
        }
    }
    wire.match_labels = labels;
    wire.match_expressions.iter_mut().for_each(|expression| expression.key = stripped(&expression.key));
    wire.parse(at)
}

/// As one selector again.
pub(super) fn joined(selector: &CiliumSelector) -> LabelSelector {
    let mut out = selector.pods.clone();
    let Some(namespaces) = &selector.namespaces else { return out };
    let pseudo = |label: &str| match label {
        NAMESPACE_NAME_LABEL => format!("k8s:{NAMESPACE}"),
        label => format!("k8s:{NAMESPACE_LABELS}{label}"),
    };
    out.match_labels.extend(namespaces.match_labels.iter().map(|(key, value)| (pseudo(key), value.clone())));
    let expressions = namespaces.match_expressions.iter().cloned();
    out.match_expressions
        .extend(expressions.map(|expression| LabelExpression { key: pseudo(&expression.key), ..expression }));
    out
}
