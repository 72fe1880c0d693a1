//! Who may connect, asked when the handshake is done and again whenever the rules change: a connection that is not
//! permitted any more is closed, and the others do not notice.

use std::{pin::pin, sync::Arc};

use tokio::sync::watch;

use crate::{
    policy::{Action, Connection, Facts, Rbac, Rules, decide},
    telemetry::{AccessDenial, ListenerStats},
};

/// The rules of a chain at this moment.
#[derive(Debug)]
pub(super) struct Gate(watch::Sender<Arc<[Rbac]>>);

impl Gate {
    pub(super) fn new(rules: &[Rbac]) -> Self {
        Self(watch::Sender::new(rules.into()))
    }

    /// From now on these count, also for connections that stand.
    pub(super) fn set(&self, rules: &[Rbac]) {
        self.0.send_if_modified(|current| {
            let other = **current != *rules;
            if other {
                *current = rules.into();
            }
            other
        });
    }

    /// Nobody is permitted any more, if not everybody was: there are no rules left to judge by.
    pub(super) fn close(&self) {
        let nobody = Rbac {
            name: "no-filter-chain".into(),
            rules: Some(Rules { action: Action::Allow, policies: Vec::new() }),
            shadow: None,
        };
        if !self.0.borrow().is_empty() {
            self.set(&[nobody]);
        }
    }

    /// Serves a connection for as long as it is permitted.
    pub(super) async fn guard(
        &self,
        who: Who<'_>,
        connection: &Connection,
        serving: impl Future<Output = ()>,
    ) {
        let mut rules = self.0.subscribe();
        if who.is_denied(&rules.borrow_and_update(), connection) {
            return;
        }
        let mut serving = pin!(serving);
        loop {
            tokio::select! {
                () = serving.as_mut() => return,
                changed = rules.changed() => {
                    // The chain outlives its connections, so there is always a sender.
                    if changed.is_err() || who.is_denied(&rules.borrow_and_update(), connection) {
                        return;
                    }
                }
            }
        }
    }
}

/// Where denials are counted and told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) listener: &'a str,
    pub(super) stats: &'a ListenerStats,
    /// Whether denials are logged at level info.
    pub(super) wanted: bool,
}

impl Who<'_> {
    fn is_denied(&self, rules: &[Rbac], connection: &Connection) -> bool {
        let verdict = decide(rules, Facts::of(connection));
        for policy in &verdict.would_deny {
            self.stats.shadow_denied.count(policy);
        }
        for policy in &verdict.audited {
            AccessDenial::audit(self.listener, connection, policy);
        }
        let Some(policy) = verdict.denied else { return false };
        self.stats.denied.count(&policy);
        AccessDenial { listener: self.listener, connection, policy: &policy, wanted: self.wanted }.log();
        true
    }
}
