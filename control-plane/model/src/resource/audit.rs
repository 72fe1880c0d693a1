//! Whether a policy, or what policies do to a workload, is only told of.

use super::{
    error::{At, Fault},
    types::Meta,
};

/// On a policy of any kind, or on a Workload: `true`, or `false`, which is the default.
pub const AUDIT_ANNOTATION: &str = "isthmus.io/audit";

/// Whether the annotation is one that can be read.
pub(super) fn check(meta: &Meta) -> Result<(), Fault> {
    check_flag(meta, AUDIT_ANNOTATION)
}

/// The same of any annotation that is true or false.
pub(super) fn check_flag(meta: &Meta, annotation: &str) -> Result<(), Fault> {
    match meta.annotations.get(annotation).map(String::as_str) {
        None | Some("true" | "false") => Ok(()),
        Some(text) => {
            let at = At::new("metadata").field("annotations").key(annotation);
            at.refuse(text, "must be 'true' or 'false'")
        }
    }
}

impl Meta {
    /// It is to be audited.
    pub fn is_audited(&self) -> bool {
        self.has_flag(AUDIT_ANNOTATION)
    }

    pub(super) fn has_flag(&self, annotation: &str) -> bool {
        self.annotations.get(annotation).is_some_and(|text| text == "true")
    }
}
