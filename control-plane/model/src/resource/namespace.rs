//! `v1 Namespace`: its labels are all that it says.

use serde::{Deserialize, de::IgnoredAny};

use super::{
    Meta, NAMESPACE_NAME_LABEL, Namespace,
    error::{At, Fault},
};

/// Its life is not ours to manage, so that nothing here has an effect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct WireNamespace {
    finalizers: Option<IgnoredAny>,
}

/// With the label that says its name, as the Kubernetes API sets it.
pub(super) fn parse(mut meta: Meta) -> Result<Namespace, Fault> {
    let name = meta.name.name.clone();
    match meta.labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone()) {
        Some(other) if other != name => At::new("metadata")
            .field("labels")
            .key(NAMESPACE_NAME_LABEL)
            .refuse(other, format!("must be the namespace's name, {name}")),
        _ => Ok(Namespace { meta }),
    }
}
