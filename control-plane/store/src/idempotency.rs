//! Which envelopes were applied already, and what they were answered.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use crate::{
    Applied, Bytes16,
    limits::{KEY_MEMORY_MS, MAX_KEYS, MAX_REMEMBERED_OUTCOMES},
};

/// The answers of the last writes. Refused ones are not remembered: they changed nothing, so a retry is harmless.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct AppliedKeys {
    answers: OrdMap<Bytes16, Arc<Applied>>,
    /// In the order of application, with the envelope's time.
    order: Vector<(Bytes16, u64)>,
    outcomes: usize,
    /// The newest envelope that was forgotten is of this time.
    forgotten_until: u64,
}

/// As it is kept in a snapshot.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Now {
        forgotten_until: u64,
        answers: Vec<Remembered>,
    },
    /// Of the first format.
    Old(Vec<Remembered>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    key: Bytes16,
    at: u64,
    answer: Arc<Applied>,
}

impl AppliedKeys {
    /// The answer to an envelope that was applied before.
    pub fn answer(&self, key: &Bytes16) -> Option<&Applied> {
        self.answers.get(key).map(Arc::as_ref)
    }

    /// Envelopes up to this time may have been applied without being remembered; 0 if all are remembered.
    pub fn forgotten_until(&self) -> u64 {
        self.forgotten_until
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// None are remembered.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Remembers an answer and forgets the oldest ones: by age, by count and by size.
    pub(crate) fn remember(&mut self, key: Bytes16, now_unix_ms: u64, answer: Applied) {
        self.push(key, now_unix_ms, Arc::new(answer));
        let too_old = now_unix_ms.saturating_sub(KEY_MEMORY_MS);
        while let Some((oldest, at)) = self.order.front().copied() {
            let keep =
                at >= too_old && self.order.len() <= MAX_KEYS && self.outcomes <= MAX_REMEMBERED_OUTCOMES;
            // The newest one stays whatever its size: its retry is the likeliest of all.
            if keep || self.order.len() == 1 {
                break;
            }
            self.order.pop_front();
            self.forgotten_until = self.forgotten_until.max(at);
            if let Some(forgotten) = self.answers.remove(&oldest) {
                self.outcomes -= forgotten.outcomes.len();
            }
        }
    }

    fn push(&mut self, key: Bytes16, at: u64, answer: Arc<Applied>) {
        self.outcomes += answer.outcomes.len();
        if let Some(replaced) = self.answers.insert(key, answer) {
            self.outcomes -= replaced.outcomes.len();
            self.order.retain(|(other, _)| *other != key);
        }
        self.order.push_back((key, at));
    }
}

impl From<Form> for AppliedKeys {
    fn from(form: Form) -> Self {
        let (forgotten_until, list) = match form {
            Form::Now { forgotten_until, answers } => (forgotten_until, answers),
            Form::Old(answers) => (0, answers),
        };
        let mut keys = AppliedKeys { forgotten_until, ..AppliedKeys::default() };
        for Remembered { key, at, answer } in list {
            keys.push(key, at, answer);
        }
        keys
    }
}

impl From<AppliedKeys> for Form {
    fn from(keys: AppliedKeys) -> Self {
        let AppliedKeys { mut answers, order, forgotten_until, .. } = keys;
        let mut list = Vec::with_capacity(order.len());
        for (key, at) in order {
            if let Some(answer) = answers.remove(&key) {
                list.push(Remembered { key, at, answer });
            }
        }
        Form::Now { forgotten_until, answers: list }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Granted;

    fn answer(revision: u64) -> Applied {
        Applied { revision, outcomes: Vec::new(), granted: Granted::Nothing, replayed: false }
    }

    fn key(n: u64) -> Bytes16 {
        Bytes16(u128::from(n).to_be_bytes())
    }

    #[test]
    fn keys_are_forgotten_by_the_time_in_the_envelopes() {
        let mut keys = AppliedKeys::default();
        keys.remember(key(1), 1_000, answer(1));
        keys.remember(key(2), 1_000 + KEY_MEMORY_MS, answer(2));
        assert!(keys.answer(&key(1)).is_some());
        keys.remember(key(3), 1_001 + KEY_MEMORY_MS, answer(3));
        assert!(keys.answer(&key(1)).is_none());
        assert_eq!((keys.len(), keys.forgotten_until()), (2, 1_000));
    }

    #[test]
    fn keys_are_bounded_whatever_the_clock_says() {
        let mut keys = AppliedKeys::default();
        for n in 0..MAX_KEYS as u64 + 10 {
            keys.remember(key(n), 5, answer(n));
        }
        assert_eq!(keys.len(), MAX_KEYS);
        assert!(keys.answer(&key(9)).is_none() && keys.answer(&key(10)).is_some());
    }

    #[test]
    fn they_survive_a_snapshot_in_order() {
        let mut keys = AppliedKeys::default();
        for n in [7, 3, 5] {
            keys.remember(key(n), n, answer(n));
        }
        let json = serde_json::to_string(&keys).expect("plain data");
        assert_eq!(serde_json::from_str::<AppliedKeys>(&json).expect("its own output"), keys);
        let now: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let old = now["answers"].to_string();
        assert_eq!(serde_json::from_str::<AppliedKeys>(&old).expect("the first format"), keys);
    }
}
