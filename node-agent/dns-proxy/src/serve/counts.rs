//! What became of questions for names of the cluster, and of others that were asked here.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
};

/// What became of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Fate {
    /// A name of ours, and what was asked for.
    Answered,
    /// A name of ours that has nothing of this type.
    NoData,
    /// No name, in a domain of ours.
    NoName,
    /// A server outside has answered, whatever it said.
    Forwarded,
    /// No server outside has answered.
    Failed,
    /// There is no server outside to ask, or a whole zone was asked for.
    Refused,
    /// It could not be read, or asked for something else than a name.
    Malformed,
    /// Dropped, as its client has too many under way; also a connection of such a client.
    Crowded,
}

impl Fate {
    /// All of them, as they are counted.
    pub const ALL: [Self; 8] = [
        Self::Answered,
        Self::NoData,
        Self::NoName,
        Self::Forwarded,
        Self::Failed,
        Self::Refused,
        Self::Malformed,
        Self::Crowded,
    ];

    /// As in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "no-data",
            Self::NoName => "no-name",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Crowded => "crowded",
        }
    }

    /// Of an answer of our own, by its header (RFC 1035, 4.1.1).
    pub(super) fn of_own(answer: &[u8]) -> Self {
        let byte = |at: usize| answer.get(at).copied().unwrap_or_default();
        let is_cut = byte(2) & 0x02 != 0;
        match byte(3) & 0x0f {
            0 if is_cut || byte(6) | byte(7) != 0 => Self::Answered,
            0 => Self::NoData,
            3 => Self::NoName,
            5 => Self::Refused,
            _ => Self::Malformed,
        }
    }
}

/// How many questions had which fate.
#[derive(Debug)]
pub struct Counts([AtomicU64; Fate::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counts {
    pub(super) fn note(&self, fate: Fate) {
        if let Some(count) = self.0.get(fate as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So far, in the order of [`Fate::ALL`].
    pub fn all(&self) -> [u64; Fate::ALL.len()] {
        array::from_fn(|at| self.0.get(at).map_or(0, |count| count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Transport,
        cluster::{Domains, NamedPort, NamedService, Reply, Zone, answer},
    };

    fn query(name: &str, kind: u16, opcode: u8) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 1 | opcode << 3, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        query
    }

    #[test]
    fn every_fate_is_counted_in_its_place() {
        for (at, fate) in Fate::ALL.into_iter().enumerate() {
            let counts = Counts::default();
            counts.note(fate);
            let mut expected = [0; 8];
            expected[at] = 1;
            assert_eq!(counts.all(), expected, "{}", fate.name());
        }
    }

    #[test]
    fn an_answer_of_ours_says_itself_what_became_of_the_question() {
        let domains =
            Domains { cluster: "cluster.local".into(), mesh: "mesh.local".into(), cluster_id: "west".into() };
        let mut zone = Zone::default();
        let service = NamedService {
            addresses: vec!["10.101.0.1".parse().unwrap()],
            ports: vec![NamedPort { name: "http".into(), port: 80, protocol: "tcp", endpoints: Vec::new() }],
            ..NamedService::default()
        };
        zone.put(mesh_model::resource::NamespacedName::new("shop", "web"), service);
        let fate = |query: &[u8]| match answer(&zone, &domains, Transport::Udp, query) {
            Reply::Answer(answer) => Some(Fate::of_own(&answer)),
            Reply::Forward | Reply::Nothing => None,
        };
        assert_eq!(fate(&query("web.shop.svc.cluster.local", 1, 0)), Some(Fate::Answered));
        assert_eq!(fate(&query("web.shop.svc.cluster.local", 28, 0)), Some(Fate::NoData));
        assert_eq!(fate(&query("none.shop.svc.cluster.local", 1, 0)), Some(Fate::NoName));
        assert_eq!(fate(&query("cluster.local", 252, 0)), Some(Fate::Refused), "a zone as a whole");
        assert_eq!(fate(&query("web.shop.svc.cluster.local", 1, 2)), Some(Fate::Malformed), "no query");
        assert_eq!(fate(&query("web.shop.svc.cluster.local", 1, 0)[..20]), Some(Fate::Malformed));
        assert_eq!(fate(&query("www.example.com", 1, 0)), None);
    }
}
