//! `multicluster.x-k8s.io/v1alpha1 ServiceExport` (KEP-1645): the name is all it says.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Meta, ServiceExport,
    error::{At, Fault},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireExport {
    #[serde(default)]
    exported_labels: BTreeMap<String, String>,
    #[serde(default)]
    exported_annotations: BTreeMap<String, String>,
}

pub(super) fn parse(spec: Option<WireExport>, meta: Meta) -> Result<ServiceExport, Fault> {
    if let Some(spec) = spec {
        At::new("spec").unsupported(&[
            ("exportedLabels", !spec.exported_labels.is_empty()),
            ("exportedAnnotations", !spec.exported_annotations.is_empty()),
        ])?;
    }
    Ok(ServiceExport { meta })
}
