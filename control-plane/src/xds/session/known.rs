//! What a client has, as far as the server can know.

use std::{collections::BTreeMap, sync::Arc};

use crate::xds::{Encoded, TypeResources};

/// What the client has of one name.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// It was sent this, and has accepted it or is about to answer.
    Sent(Arc<Encoded>),
    /// It said that it holds this version from an earlier stream.
    Told(Arc<str>),
    /// It was told that there is no such resource.
    Absent,
    /// It refused the last version. It runs on the accepted one, if that is known, or on parts of the refused one.
    Uncertain(Option<Arc<Encoded>>),
}

impl Known {
    /// The version that need not be sent.
    pub(super) fn version(&self) -> Option<&Arc<str>> {
        match self {
            Self::Sent(resource) => Some(&resource.version),
            Self::Told(version) => Some(version),
            Self::Absent | Self::Uncertain(_) => None,
        }
    }

    /// Contents that the client is known to have accepted, if this state was settled.
    pub(super) fn contents(&self) -> Option<&Arc<Encoded>> {
        match self {
            Self::Sent(resource) | Self::Uncertain(Some(resource)) => Some(resource),
            Self::Told(_) | Self::Absent | Self::Uncertain(None) => None,
        }
    }

    /// Whether the client may hold something under this name.
    pub(super) fn may_hold(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// What the client has of all names of a type: a snapshot that it has, shared with everybody who has the same, and
/// what is otherwise. So a client that is up to date costs nothing by the resource, however many it has.
///
/// The snapshot counts only for names that the client wants; what it says of others is not to be asked for.
/// [`note_wanted`](Self::note_wanted) keeps that so when a name becomes wanted.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    snapshot: TypeResources,
    /// What is not as in the snapshot. None: nothing is known.
    otherwise: BTreeMap<Arc<str>, Option<Known>>,
}

impl Holdings {
    /// What the client has of a name that it wants, or said on its first message that it holds.
    ///
    /// `named`: it has asked for this name, and not only for everything. Then, if there is nothing to be said about it,
    /// it was told that it doesn't exist.
    pub(super) fn get(&self, name: &str, named: bool) -> Option<Known> {
        match (self.otherwise.get(name), self.snapshot.get(name)) {
            (Some(known), _) => known.clone(),
            (None, Some(resource)) => Some(Known::Sent(resource.clone())),
            (None, None) => named.then_some(Known::Absent),
        }
    }

    /// The version that the client has and need not be sent.
    pub(super) fn version(&self, name: &str) -> Option<&Arc<str>> {
        match (self.otherwise.get(name), self.snapshot.get(name)) {
            (Some(known), _) => known.as_ref()?.version(),
            (None, resource) => Some(&resource?.version),
        }
    }

    /// A name becomes wanted. `before`: it was wanted all along, in another way.
    pub(super) fn note_wanted(&mut self, name: &Arc<str>, before: bool) {
        if !before || (!self.otherwise.contains_key(name) && !self.snapshot.contains_key(name)) {
            self.otherwise.insert(name.clone(), None);
        }
    }

    /// What the client has of a name is this now.
    pub(super) fn set(&mut self, name: &Arc<str>, known: Known) {
        self.otherwise.insert(name.clone(), Some(known));
    }

    /// The client is being sent this.
    pub(super) fn set_sent(&mut self, resource: &Arc<Encoded>) {
        if self.snapshot.get(&resource.name).is_some_and(|held| Arc::ptr_eq(held, resource)) {
            self.otherwise.remove(&resource.name);
        } else {
            self.set(&resource.name, Known::Sent(resource.clone()));
        }
    }

    /// Nothing is known of this name any more.
    pub(super) fn set_nothing(&mut self, name: &Arc<str>) {
        if self.snapshot.contains_key(name) {
            self.otherwise.insert(name.clone(), None);
        } else {
            self.otherwise.remove(name);
        }
    }

    /// The name is not wanted any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.otherwise.remove(name);
    }

    /// Takes what a client says that it holds from an earlier stream.
    pub(super) fn hold(&mut self, versions: BTreeMap<String, String>, set: &TypeResources) {
        let is_current = |(name, version): &(&String, &String)| {
            set.get(name.as_str()).is_some_and(|resource| *resource.version == **version)
        };
        let equal = versions.iter().filter(is_current).count();
        // It was there lately, as most are: what is different is less than what is equal.
        let recent = equal > set.len() / 2;
        if recent {
            self.snapshot = set.clone();
            let missing = set.keys().filter(|name| !versions.contains_key(&***name));
            self.otherwise = missing.map(|name| (name.clone(), None)).collect();
        }
        for (name, version) in versions {
            let known = match set.get_key_value(name.as_str()) {
                Some((_, resource)) if *resource.version == *version && recent => continue,
                // Share the strings where they are equal: thousands of clients hold the same.
                Some((name, resource)) if *resource.version == *version => {
                    (name.clone(), Known::Told(resource.version.clone()))
                }
                Some((name, _)) => (name.clone(), Known::Told(version.into())),
                None => (name.into(), Known::Told(version.into())),
            };
            self.otherwise.insert(known.0, Some(known.1));
        }
    }

    /// Whether anything at all is known.
    pub(super) fn is_empty(&self) -> bool {
        self.snapshot.is_empty() && self.otherwise.is_empty()
    }

    /// The names of which something else than the snapshot is known.
    pub(super) fn exceptions(&self) -> impl Iterator<Item = &Arc<str>> {
        self.otherwise.keys()
    }

    /// The wildcard is over: only these names are left.
    pub(super) fn restrict<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        let left = names.map(|name| (name.clone(), self.get(name, true))).collect();
        *self = Self { snapshot: TypeResources::new(), otherwise: left };
    }

    /// The client has what is in the snapshot, but for what concerns these names, of which something is to be sent or was
    /// refused. Costs as much as there are of them, so it is put off while they are many: a client that
    /// doesn't read is not to be worked on at each change.
    pub(super) fn rebase<'a>(
        &mut self,
        snapshot: Option<&TypeResources>,
        pending: impl Iterator<Item = &'a Arc<str>> + Clone,
        named: impl Fn(&str) -> bool,
    ) {
        const FEW: usize = 64;
        let same = snapshot.map_or(self.snapshot.is_empty(), |new| new.ptr_eq(&self.snapshot));
        if same && self.otherwise.is_empty() {
            return;
        }
        let pending_names = pending.clone().count();
        let gains = self.otherwise.len() > 2 * pending_names;
        if !gains && (same || pending_names > FEW) {
            return;
        }
        let otherwise = pending.map(|name| (name.clone(), self.get(name, named(name)))).collect();
        *self = Self { snapshot: snapshot.cloned().unwrap_or_default(), otherwise };
    }
}
