//! Whether a workload ends.

use super::{
    audit,
    error::Fault,
    types::{Meta, Workload},
};

/// On a Workload: `true`, or `false`, which is the default. It keeps its connections and gets no new ones.
pub const DRAIN_ANNOTATION: &str = "isthmus.io/drain";

/// Whether the annotation is one that can be read.
pub(super) fn check(meta: &Meta) -> Result<(), Fault> {
    audit::check_flag(meta, DRAIN_ANNOTATION)
}

impl Workload {
    /// It ends.
    pub fn is_draining(&self) -> bool {
        self.meta.has_flag(DRAIN_ANNOTATION)
    }
}
