//! When resources were sent and refused on one stream. Pure; the time is an argument.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use crate::xds::session::{Event, Response};

/// Resources of a type whose time is kept apart: some 3 KB a stream. Of those before them it is forgotten: memory must
/// not grow with what a client has.
const MAX_APART: usize = 64;

/// The times of one stream.
#[derive(Debug, Default)]
pub struct Journal {
    types: BTreeMap<Arc<str>, Times>,
}

#[derive(Debug)]
struct Times {
    /// The first response, for all that was in it and has not been sent since.
    first: SystemTime,
    /// Something has been forgotten: what is not in `later` may be from the first response, or not.
    forgotten: bool,
    later: BTreeMap<Arc<str>, SystemTime>,
    order: VecDeque<Arc<str>>,
    refused: Option<SystemTime>,
}

impl Journal {
    /// A response was sent.
    pub fn sent(&mut self, response: &Response, now: SystemTime) {
        self.note_sent(&response.type_url, response.resources.iter().map(|resource| &resource.name), now);
    }

    /// The client has answered.
    pub fn note(&mut self, events: &[Event], now: SystemTime) {
        for event in events {
            if let Event::Nacked { type_url, .. } = event
                && let Some(times) = self.types.get_mut(type_url)
            {
                times.refused = Some(now);
            }
        }
    }

    fn note_sent<'a>(
        &mut self,
        type_url: &Arc<str>,
        names: impl Iterator<Item = &'a Arc<str>>,
        now: SystemTime,
    ) {
        let Some(times) = self.types.get_mut(type_url) else {
            let first = Times {
                first: now,
                forgotten: false,
                later: BTreeMap::new(),
                order: VecDeque::new(),
                refused: None,
            };
            self.types.insert(type_url.clone(), first);
            return;
        };
        for name in names {
            if times.later.insert(name.clone(), now).is_some() {
                continue;
            }
            times.order.push_back(name.clone());
            if times.order.len() > MAX_APART
                && let Some(oldest) = times.order.pop_front()
            {
                times.later.remove(&oldest);
                times.forgotten = true;
            }
        }
    }

    /// When a resource was sent last; None if that is forgotten, or was on an earlier stream.
    pub fn sent_at(&self, type_url: &str, name: &str) -> Option<SystemTime> {
        let times = self.types.get(type_url)?;
        times.later.get(name).copied().or((!times.forgotten).then_some(times.first))
    }

    /// When the client refused a response of a type last.
    pub fn refused_at(&self, type_url: &str) -> Option<SystemTime> {
        self.types.get(type_url)?.refused
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_resource_has_the_time_of_the_last_response_that_it_was_in() {
        let (mut journal, cds) = (Journal::default(), Arc::from("cds"));
        let names = ["a", "b"].map(Arc::from);
        assert_eq!(journal.sent_at("cds", "a"), None);
        journal.note_sent(&cds, names.iter(), at(1));
        journal.note_sent(&cds, names[..1].iter(), at(2));
        assert_eq!((journal.sent_at("cds", "a"), journal.sent_at("cds", "b")), (Some(at(2)), Some(at(1))));
        let nacked = |type_url: &str| Event::Nacked {
            type_url: type_url.into(),
            revision: 1,
            error: String::new(),
            resources: vec![],
        };
        journal.note(&[nacked("cds"), nacked("never sent")], at(3));
        assert_eq!((journal.refused_at("cds"), journal.refused_at("eds")), (Some(at(3)), None));
    }

    #[test]
    fn memory_is_bounded_and_a_time_that_is_forgotten_is_not_made_up() {
        let (mut journal, eds) = (Journal::default(), Arc::from("eds"));
        let names: Vec<Arc<str>> = (0..MAX_APART + 1).map(|n| n.to_string().into()).collect();
        journal.note_sent(&eds, names.iter(), at(1));
        assert_eq!(journal.sent_at("eds", "0"), Some(at(1)), "a first response of any size costs nothing");
        journal.note_sent(&eds, names.iter(), at(2));
        assert_eq!((journal.sent_at("eds", "0"), journal.sent_at("eds", "1")), (None, Some(at(2))));
        assert_eq!(journal.types["eds"].later.len(), MAX_APART);
    }
}
