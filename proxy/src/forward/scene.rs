//! What is known of a request apart from its head, for texts with operators.

use std::time::SystemTime;

use super::request::Head;
use crate::{format::Facts, policy::Connection};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) connection: &'a Connection,
    pub(super) route: &'a str,
    pub(super) cluster: Option<&'a str>,
}

impl<'a> Scene<'a> {
    /// Everything that is known before there is an endpoint or an answer.
    pub(super) fn facts(&self, head: &'a Head) -> Facts<'a> {
        Facts {
            request: Some(head.view()),
            remote: Some(head.remote),
            protocol: Some(head.protocol),
            ..self.without_head()
        }
    }

    /// The same, where the head is gone.
    pub(super) fn without_head(&self) -> Facts<'a> {
        Facts {
            connection: Some(self.connection),
            start: Some(SystemTime::now()),
            cluster: self.cluster,
            route: Some(self.route),
            ..Facts::default()
        }
    }
}
