//! Whether calls of a service may overflow to peers while callers report that they fail here.

use super::{
    error::{At, Fault},
    types::Meta,
};

/// On a Service: `on`, or `off`, which is the default.
pub const OVERFLOW_ANNOTATION: &str = "isthmus.io/overflow";

/// Whether the annotation is one that can be read.
pub(super) fn check(meta: &Meta) -> Result<(), Fault> {
    match meta.annotations.get(OVERFLOW_ANNOTATION).map(String::as_str) {
        None | Some("on" | "off") => Ok(()),
        Some(text) => {
            let at = At::new("metadata").field("annotations").key(OVERFLOW_ANNOTATION);
            at.refuse(text, "must be 'on' or 'off'")
        }
    }
}

impl Meta {
    /// Calls may overflow to peers.
    pub fn may_overflow(&self) -> bool {
        self.annotations.get(OVERFLOW_ANNOTATION).is_some_and(|text| text == "on")
    }
}
