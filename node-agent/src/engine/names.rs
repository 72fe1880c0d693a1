//! Names in DNS, on their way to the kernel.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ebpf_shared::identity::LOCAL;
use ipnet::IpNet;
use thiserror::Error;
use xds_proto::isthmus::local::v1::DnsRules;

use super::{Engine, Inner};
use crate::{
    desired::{asks_proxy, dns_names},
    flows::Parties,
    maps::MapError,
    names::{Log, LogError, Names},
};

/// Why an answer must not be told.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AdmitError {
    #[error("it can't be kept over a restart: {0}")]
    Log(#[from] LogError),
    #[error(transparent)]
    Kernel(#[from] MapError),
    #[error("{0} addresses of a name at once: there is no room for so many")]
    Full(usize),
}

/// What is kept of names, and how long at least.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// `None`: nothing is kept over a restart.
    log: Option<Log>,
    floor: Duration,
    /// What was told when `names.forgotten` was last looked at.
    pub(super) forgotten: u64,
    /// Whose names changed since the kernel last took everything.
    pub(super) unwritten: BTreeSet<IpAddr>,
}

impl Engine {
    /// Goes on with the names that an earlier agent has learnt, at `now` (Unix seconds). Every name holds for `floor` at
    /// least. Takes effect with the next change, and is to be called before the first.
    pub fn keep_names(&self, (log, mut names): (Log, Names), floor: Duration, now: u64) {
        let mut inner = self.lock();
        names.resume(now, |address| {
            let current = &inner.current;
            let held = current.identities.get(&IpNet::from(address));
            held.is_some_and(|identity| identity & LOCAL != 0) || current.lingering.contains_key(&address)
        });
        inner.names = names;
        inner.kept = Kept { log: Some(log), floor, ..Kept::default() };
    }

    /// A pod is about to be told where a name is: returns when the kernel lets pods there, as far as policy allows the name. What
    /// no policy of this node names is not remembered.
    ///
    /// # Errors
    /// It does not, or a restart would forget it.
    pub fn admit(
        &self,
        pod: IpAddr,
        name: &str,
        addresses: &[(IpAddr, Duration)],
        now: u64,
    ) -> Result<(), AdmitError> {
        let result = self.lock().admit(pod, name, addresses, now);
        self.tell();
        result
    }

    /// Has names lapse whose time is over at `now` (Unix seconds): from then on only what is there already goes on. Returns
    /// all addresses that have such names.
    ///
    /// # Errors
    /// The kernel refused a write; it is tried again.
    pub fn lapse_names(&self, now: u64) -> Result<BTreeSet<IpAddr>, MapError> {
        let mut inner = self.lock();
        if inner.names.is_due(now) {
            let changed = inner.names.lapse(now);
            inner.names_changed(changed)?;
        }
        Ok(inner.names.lapsed())
    }

    /// Forgets the lapsed names of addresses that nobody is connected to.
    ///
    /// # Errors
    /// The kernel refused a write; it is tried again.
    pub fn forget_names(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), MapError> {
        let mut inner = self.lock();
        let changed = inner.names.forget(addresses);
        inner.names_changed(changed)
    }

    /// What pods of this node may ask DNS for; `None` while a pod's policy is not here.
    pub fn dns_rules(&self) -> Option<DnsRules> {
        let inner = self.lock();
        inner.planner.dns_rules(inner.inputs(), &inner.current)
    }

    /// Whether a pod of this node may ask DNS only by the proxy.
    pub fn needs_dns_proxy(&self) -> bool {
        let inner = self.lock();
        let classes: BTreeSet<u32> = inner.resources.locals.values().map(|local| local.class).collect();
        classes.into_iter().filter_map(|class| inner.resources.class(class)).any(asks_proxy)
    }

    /// Who asks whom for a name, as policy sees them, and the rule by which the query comes to the proxy: the one that allows
    /// the name, if one does.
    pub fn dns_parties(&self, pod: IpAddr, server: IpAddr, name: &str) -> Parties {
        let inner = self.lock();
        let identity = inner.current.identities.identity(&IpNet::from(server));
        let owner = inner.pods.iter().find(|(_, known)| known.addresses.has(pod)).map(|(name, _)| name);
        let Some(local) = owner.and_then(|owner| inner.resources.locals.get(owner)) else {
            return Parties { server: identity, ..Parties::default() };
        };
        let rules = inner.resources.class(local.class).into_iter().flat_map(|class| &class.rules);
        let rules: Vec<_> = rules.filter_map(|rule| Some((dns_names(rule)?, rule))).collect();
        let allows = rules.iter().find(|(names, _)| names.iter().any(|pattern| pattern.matches(name)));
        let policy = allows.or(rules.first()).map(|(_, rule)| rule.provenance.clone());
        Parties { pod: local.identity, server: identity, policy: policy.unwrap_or_default() }
    }

    /// Names at addresses that are known, those of them that have lapsed, and those forgotten before their time, ever.
    pub fn names_known(&self) -> (usize, usize, u64) {
        let inner = self.lock();
        (inner.names.len(), inner.names.lapsed().len(), inner.names.forgotten())
    }
}

impl Inner {
    fn admit(
        &mut self,
        pod: IpAddr,
        name: &str,
        addresses: &[(IpAddr, Duration)],
        now: u64,
    ) -> Result<(), AdmitError> {
        if !self.planner.names_it(&self.resources, name) {
            return Ok(());
        }
        // One share for all addresses of a pod.
        let pod = pod.to_canonical();
        let owner = self.pods.values().find(|known| known.addresses.has(pod));
        let holder = owner.map_or(pod, |known| known.addresses.v4.into());
        // No packet goes there.
        let is_somewhere =
            |address: &IpAddr| !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
        let canonical = addresses.iter().map(|(address, holds)| (address.to_canonical(), *holds));
        let addresses: Vec<_> = canonical.filter(|(address, _)| is_somewhere(address)).collect();
        let learnt = self.names.learn(Some(holder), name, &addresses, now, self.kept.floor);
        let (mut changed, learnt_new) = (learnt.changed, learnt.new);
        if learnt.is_refused {
            self.names_changed(changed)?;
            return Err(AdmitError::Full(addresses.len()));
        }
        // What was refused before is tried again before anybody is told of it.
        changed.extend(
            addresses.iter().map(|(address, _)| *address).filter(|at| self.kept.unwritten.contains(at)),
        );
        let learnt: Vec<_> =
            addresses.iter().filter_map(|(address, _)| self.names.place(name, *address)).collect();
        // First on disk: what the kernel has and a restarted agent does not know of, it would take back.
        let logged = match &mut self.kept.log {
            Some(log) => log.note(&learnt, &self.names),
            None => Ok(()),
        };
        let written = self.names_changed(changed);
        if written.is_err() && self.full.is_some() {
            self.withdraw(name, &learnt_new)?;
        }
        written?;
        Ok(logged?)
    }

    /// What has no room in the kernel is forgotten at once: names must not keep policy from being written.
    fn withdraw(&mut self, name: &str, new: &BTreeSet<IpAddr>) -> Result<(), AdmitError> {
        self.names.withdraw(name, new);
        if let Some(log) = &mut self.kept.log {
            log.rewrite(&self.names)?;
        }
        Ok(self.names_changed(new.clone())?)
    }

    fn names_changed(&mut self, changed: BTreeSet<IpAddr>) -> Result<(), MapError> {
        let forgotten = self.names.forgotten();
        if forgotten > self.kept.forgotten {
            let count = forgotten - self.kept.forgotten;
            tracing::warn!(
                count,
                "too many names: of the pod that has the most, those that would end first are forgotten, and what was connected by them is cut"
            );
            self.kept.forgotten = forgotten;
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.kept.unwritten.extend(&changed);
        self.touched.names.extend(changed);
        self.write()
    }
}
