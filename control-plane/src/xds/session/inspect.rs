//! What a stream holds, resource by resource, for whoever asks from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Session, known::Known, type_state::TypeState};
use crate::xds::{Encoded, TypeResources};

/// Where one resource of one stream stands.
#[derive(Debug, Clone)]
pub struct Inspection<'a> {
    /// Full type URL.
    pub type_url: &'a Arc<str>,
    /// Name of the resource, or a name that was asked for.
    pub name: &'a Arc<str>,
    /// What the client runs or is being sent; None if that is nothing, or not known.
    pub version: Option<Arc<str>>,
    /// The contents of that, or of what it refused, as far as this replica has them.
    pub resource: Option<Arc<Encoded>>,
    /// How it got there.
    pub holding: Holding<'a>,
}

/// What the client has done about the newest of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding<'a> {
    /// Accepted it.
    Acked,
    /// Was sent it and has not answered.
    Sent,
    /// Was not sent it yet.
    Unsent,
    /// Refused it.
    Refused {
        /// The refused version.
        version: &'a Arc<str>,
        /// The client's words, for all that it refused together.
        error: &'a str,
    },
    /// Was told that there is no such resource.
    Absent,
}

impl Session {
    /// Tells of every resource that the client wants and has, should have or refused; by type and name.
    pub fn inspect(&self, mut each: impl FnMut(Inspection<'_>)) {
        for state in &self.types {
            state.inspect(Some(&state.view), &mut each);
        }
    }
}

impl TypeState {
    fn inspect(&self, set: Option<&TypeResources>, each: &mut impl FnMut(Inspection<'_>)) {
        let in_flight: BTreeMap<&Arc<str>, Option<&Arc<Encoded>>> = self
            .in_flight
            .iter()
            .flat_map(|sent| {
                let resources = sent.sent.iter().map(|(resource, _)| (&resource.name, Some(resource)));
                resources.chain(sent.removed.iter().map(|(name, _)| (name, None)))
            })
            .collect();
        let all = set.filter(|_| self.wildcard).into_iter().flat_map(|map| map.keys());
        let names: BTreeSet<&Arc<str>> =
            all.chain(&self.names).chain(&self.removes).chain(in_flight.keys().copied()).collect();
        for name in names {
            let current = set.and_then(|map| map.get(name));
            let known = self.known(name);
            let held = known.as_ref().and_then(|known| {
                known.version().or_else(|| known.contents().map(|resource| &resource.version))
            });
            let waits = self.adds.contains(name) || self.owed.contains(name) || self.removes.contains(name);
            let (version, resource, holding) = if let Some(refused) = self.rejected.get(name) {
                let error = self.nacked.as_ref().map_or("", |nacked| nacked.error.as_str());
                let contents = current.filter(|resource| resource.version == *refused);
                (held.cloned(), contents.cloned(), Holding::Refused { version: refused, error })
            } else if let Some(sent) = in_flight.get(name) {
                (sent.map(|resource| resource.version.clone()), sent.cloned(), Holding::Sent)
            } else {
                let contents = known.as_ref().and_then(Known::contents).cloned();
                let contents = contents.or_else(|| current.filter(|now| Some(&now.version) == held).cloned());
                let holding = match &known {
                    _ if waits => Holding::Unsent,
                    Some(Known::Sent(_) | Known::Told(_)) => Holding::Acked,
                    Some(Known::Absent) => Holding::Absent,
                    Some(Known::Uncertain(_)) | None => Holding::Unsent,
                };
                (held.cloned(), contents, holding)
            };
            each(Inspection { type_url: &self.type_url, name, version, resource, holding });
        }
    }
}
