//! Any script ends well: whatever the model does and however the client answers, once it has answered everything
//! it holds what it wants as the model has it, and the server falls silent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::script::*;
use crate::xds::session::*;

const TYPES: [&str; 4] = [CDS, EDS, LDS, RDS];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Contents that the client refuses.
const BAD: &str = "bad";

#[derive(Debug, Clone)]
enum Step {
    /// A resource gets contents, or goes.
    Model(usize, usize, Option<&'static str>),
    /// The client wants a name, or no longer.
    Interest(usize, usize, bool),
    /// The client answers what was sent of a type.
    Answer(usize),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let contents = prop_oneof![Just(Some("1")), Just(Some("2")), Just(Some(BAD)), Just(None)];
    prop_oneof![
        4 => (0..4usize, 0..4usize, contents).prop_map(|(t, n, c)| Step::Model(t, n, c)),
        2 => (0..4usize, 0..4usize, any::<bool>()).prop_map(|(t, n, on)| Step::Interest(t, n, on)),
        4 => (0..4usize).prop_map(Step::Answer),
        1 => Just(Step::Reconnect),
    ]
}

/// A client that applies a response as a whole or refuses it as a whole.
struct World {
    session: Session,
    protocol: Protocol,
    streams: u64,
    model: BTreeMap<(usize, usize), &'static str>,
    revision: u64,
    /// Names that are asked for; clusters and listeners are wildcards beside.
    wanted: BTreeMap<usize, BTreeSet<usize>>,
    held: BTreeMap<(usize, String), String>,
    unanswered: BTreeMap<usize, Response>,
}

fn is_wildcard(of: usize) -> bool {
    TYPES[of] == CDS || TYPES[of] == LDS
}

impl World {
    fn new(protocol: Protocol) -> Self {
        let session = Session::new(protocol, 0, Limits::default(), Arc::default(), 0);
        let mut world = Self {
            session,
            protocol,
            streams: 0,
            model: BTreeMap::new(),
            revision: 0,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            unanswered: BTreeMap::new(),
        };
        world.reconnect();
        world
    }

    fn set(&self) -> ResourceSet {
        let text = |of: usize| {
            let of_type = self.model.iter().filter(|((t, _), _)| *t == of);
            of_type.map(|((_, n), contents)| format!("{}={contents} ", NAMES[*n])).collect::<String>()
        };
        let texts: Vec<_> = (0..4).map(text).collect();
        let types: Vec<_> = TYPES.iter().zip(&texts).map(|(t, text)| (*t, text.as_str())).collect();
        set(self.revision, &types)
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Model(of, name, contents) => {
                match contents {
                    Some(contents) => drop(self.model.insert((of, name), contents)),
                    None => drop(self.model.remove(&(of, name))),
                }
                self.revision += 1;
                self.session.on_snapshot(Arc::new(self.set()), self.revision);
            }
            Step::Interest(of, name, on) => self.interest(of, name, on),
            Step::Answer(of) => self.answer(of),
            Step::Reconnect => self.reconnect(),
        }
        self.pull();
    }

    fn interest(&mut self, of: usize, name: usize, on: bool) {
        let wanted = self.wanted.entry(of).or_default();
        let changed = if on { wanted.insert(name) } else { wanted.remove(&name) };
        if !changed {
            return;
        }
        if !on && !is_wildcard(of) {
            self.held.remove(&(of, NAMES[name].to_owned()));
        }
        let request = match self.protocol {
            Protocol::Sotw => self.whole(of, ""),
            Protocol::Delta if on => delta(TYPES[of], NAMES[name], ""),
            Protocol::Delta => delta(TYPES[of], &format!("-{}", NAMES[name]), ""),
        };
        self.session.on_request(request).unwrap();
    }

    /// SotW: a request with the whole subscription.
    fn whole(&self, of: usize, nonce: &str) -> Request {
        let names = self.wanted.get(&of).into_iter().flatten().map(|n| NAMES[*n]);
        let all: Vec<_> = is_wildcard(of).then_some(WILDCARD).into_iter().chain(names).collect();
        sotw(TYPES[of], &all.join(" "), nonce)
    }

    fn reconnect(&mut self) {
        self.streams += 1;
        self.unanswered.clear();
        self.session =
            Session::new(self.protocol, self.streams, Limits::default(), Arc::new(self.set()), self.revision);
        for of in 0..4 {
            let mut request = self.whole(of, "");
            if let (Protocol::Delta, Interest::Exactly(names)) = (self.protocol, &request.interest) {
                if names.is_empty() {
                    continue;
                }
                request.interest = Interest::Change { subscribe: names.clone(), unsubscribe: vec![] };
                let held = self.held.iter().filter(|((t, _), _)| *t == of);
                request.initial_versions = held.map(|((_, n), v)| (n.clone(), v.clone())).collect();
            }
            self.session.on_request(request).unwrap();
            self.pull();
        }
        self.session.reopened();
    }

    fn pull(&mut self) {
        while let Some(response) = self.session.next_response() {
            let of = TYPES.iter().position(|t| **t == *response.type_url).unwrap();
            assert!(self.unanswered.insert(of, response).is_none(), "two responses of a type in flight");
        }
    }

    fn answer(&mut self, of: usize) {
        let Some(response) = self.unanswered.remove(&of) else { return };
        let is_bad =
            |r: &Arc<crate::xds::Encoded>| *r.version == *version(TYPES[of], &format!("{}={BAD}", r.name));
        let refuse = response.resources.iter().any(is_bad);
        let mut request = match self.protocol {
            Protocol::Sotw => self.whole(of, &response.nonce),
            Protocol::Delta => delta(TYPES[of], "", &response.nonce),
        };
        if refuse {
            request.error = Some(Refusal { code: 3, message: "bad".into() });
        } else {
            self.apply(of, &response);
        }
        self.session.on_request(request).unwrap();
    }

    fn apply(&mut self, of: usize, response: &Response) {
        let full = self.protocol == Protocol::Sotw && is_wildcard(of);
        if full {
            self.held.retain(|(t, _), _| *t != of);
        }
        let wants = |name: &str| {
            is_wildcard(of) || self.wanted.get(&of).is_some_and(|set| set.iter().any(|n| NAMES[*n] == name))
        };
        for resource in response.resources.iter().filter(|resource| wants(&resource.name)) {
            self.held.insert((of, resource.name.to_string()), resource.version.to_string());
        }
        if self.protocol == Protocol::Delta {
            for name in &response.removed {
                self.held.remove(&(of, name.to_string()));
            }
        }
    }

    /// Answers everything until nothing more comes.
    fn settle(&mut self) {
        for _ in 0..200 {
            let Some(of) = self.unanswered.keys().next().copied() else { return };
            self.answer(of);
            self.pull();
        }
        panic!("reply loop");
    }

    fn check(&self) {
        for (of, type_url) in TYPES.into_iter().enumerate() {
            let named = |name| self.wanted.get(&of).is_some_and(|set| set.contains(&name));
            for (name, text) in NAMES.into_iter().enumerate().filter(|(n, _)| is_wildcard(of) || named(*n)) {
                let held = self.held.get(&(of, text.to_owned()));
                let expected = self.model.get(&(of, name)).map(|c| version(type_url, &format!("{text}={c}")));
                // SotW has no words for the end of a route or of endpoints.
                if expected.is_some() || self.protocol == Protocol::Delta || is_wildcard(of) {
                    assert_eq!(held, expected.as_ref(), "{text} of {type_url}");
                }
            }
        }
        for state in &self.session.types {
            assert_eq!(state.held.exceptions().count(), 0, "{} is all as in the snapshot", state.type_url);
        }
        for status in self.session.status() {
            assert_eq!((status.acked_revision, status.nacked), (self.revision, None), "{}", status.type_url);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_client_ends_up_with_what_it_wants(
        delta in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new(if delta { Protocol::Delta } else { Protocol::Sotw });
        steps.iter().for_each(|step| world.take(step));
        world.settle();
        for status in world.session.status() {
            // With everything answered nothing is waited for, refusals or not.
            prop_assert_eq!(status.settled_revision, world.revision);
        }
        // The operator mends what was refused.
        let bad: Vec<_> = world.model.iter().filter(|(_, c)| **c == BAD).map(|(key, _)| *key).collect();
        for (of, name) in bad {
            world.take(&Step::Model(of, name, Some("3")));
        }
        world.settle();
        world.check();
    }
}
