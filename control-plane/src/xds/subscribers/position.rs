//! Where a stream stands, and what that means for somebody who waits for a revision. Pure: the time is an argument.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::xds::session::TypeStatus;

/// Changes of its view that a stream remembers. For older revisions it is not known whether they concerned it.
const REMEMBERED_CHANGES: usize = 64;
/// A client that has not answered a heartbeat for so long is stuck, whatever its connection says.
pub const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(20);
/// A client that has not answered a response for so long is stuck. Envoy keeps the answer back for 15 s while it
/// waits for what a cluster or listener refers to.
pub const RESPONSE_PATIENCE: Duration = Duration::from_secs(30);

/// At which revisions the view of a client changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Nothing is known of this revision and those before it.
    floor: u64,
    /// (last revision without the change, first one with it), ascending.
    steps: VecDeque<(u64, u64)>,
}

impl Changes {
    /// Knows of what comes after a revision.
    pub fn after(revision: u64) -> Self {
        Self { floor: revision, steps: VecDeque::new() }
    }

    /// The view was one thing at `before` and is another at `now`.
    pub fn record(&mut self, before: u64, now: u64) {
        if self.steps.len() == REMEMBERED_CHANGES
            && let Some((_, forgotten)) = self.steps.pop_front()
        {
            self.floor = forgotten;
        }
        self.steps.push_back((before, now));
    }

    /// Before which revisions the changes came that lie after `acked` and not after `upto`.
    fn between(&self, acked: u64, upto: u64) -> impl Iterator<Item = u64> {
        let first = self.steps.partition_point(|(_, now)| *now <= acked);
        self.steps.iter().skip(first).take_while(move |(_, now)| *now <= upto).map(|(before, _)| *before)
    }

    /// Whether what came into effect with `revision` changed the view; None if that is forgotten. To be asked once
    /// the stream has seen the revision. Revisions that were compiled together can't be told apart: one of them
    /// concerning the client is as good as all.
    pub fn concerned_by(&self, revision: u64) -> Option<bool> {
        if revision <= self.floor {
            return None;
        }
        let first = self.steps.partition_point(|(_, now)| *now < revision);
        Some(self.steps.get(first).is_some_and(|(before, _)| *before < revision))
    }
}

/// What moves while a stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The newest revision that the stream's view was compared with.
    pub seen: u64,
    /// Revision of the newest response; zero if none was needed.
    pub sent: u64,
    /// Up to this revision everything that concerns the client was ACKed.
    pub acked: u64,
    /// Up to this revision everything that concerns the client was answered, by ACK or NACK.
    pub settled: u64,
    /// Revision of the newest refusal that still stands.
    pub nacked: Option<u64>,
    /// NACKs on this stream.
    pub nacks: u32,
    /// The client's words at its last NACK, with the resources concerned.
    pub last_error: Option<String>,
    /// ACKed revision by type URL.
    pub acked_by_type: Vec<(Arc<str>, u64)>,
    /// When the view of the client changed.
    pub changes: Changes,
    /// Since when something is unanswered, without a pause.
    pub unanswered_since: Option<Instant>,
    /// When the heartbeat that is unanswered was sent.
    pub heartbeat_since: Option<Instant>,
    /// When the client was last heard.
    pub heard: Instant,
    /// What the stream was told to look at and has not looked at yet.
    pub due: Option<Due>,
    /// Types with something unsent.
    pub unsent: u32,
    /// Types with a response that is not answered.
    pub in_flight: u32,
    /// Up to this revision changes have been told to have converged. What is acked goes back when the client subscribes
    /// to another type; this does not.
    converged: u64,
}

/// The view of a client may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Up to this revision nothing concerned the client since its stream looked last.
    pub before: u64,
    /// The newest revision that concerns it.
    pub revision: u64,
}

/// What a person wants to know of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It has ACKed everything.
    Synced,
    /// It has not answered yet.
    Syncing,
    /// It refused something, and runs on what it had.
    Refused,
    /// It is connected, but has answered nothing for too long.
    Stale,
}

impl Health {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Syncing => "syncing",
            Self::Refused => "refused",
            Self::Stale => "stale",
        }
    }
}

/// What a stream is to somebody who waits for a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The revision does not concern it.
    Unconcerned,
    /// It has not answered, or it is not known yet whether it is concerned.
    Pending,
    /// It has ACKed.
    Acked,
    /// It has NACKed, and everything was tried.
    Refused,
}

impl Position {
    /// Of a stream that opens when the views are at `revision`.
    pub fn new(revision: u64, now: Instant) -> Self {
        Self {
            seen: revision,
            sent: 0,
            acked: 0,
            settled: 0,
            nacked: None,
            nacks: 0,
            last_error: None,
            acked_by_type: Vec::new(),
            changes: Changes::after(revision),
            unanswered_since: Some(now),
            heartbeat_since: None,
            heard: now,
            due: None,
            unsent: 0,
            in_flight: 0,
            converged: 0,
        }
    }

    /// Changes of the view that the client has come to have, of every type, since this was asked last: for each the
    /// revision after which it came.
    pub fn converged(&mut self) -> impl Iterator<Item = u64> {
        let before = self.converged;
        self.converged = before.max(self.acked);
        self.changes.between(before, self.converged)
    }

    /// Types whose response waits, and a change that was not looked at, which is of one type at least.
    pub fn queued(&self) -> u32 {
        self.unsent.max(u32::from(self.due.is_some()))
    }

    /// The client is served first from this revision.
    pub fn open_at(&mut self, revision: u64) {
        self.seen = self.seen.max(revision);
        self.changes = Changes::after(self.seen);
        self.looked();
    }

    /// A revision concerns the client, and what came into effect with it came after the revision `before`.
    ///
    /// A stream that has looked at it already needs no telling, and would not take the note away.
    pub fn note_due(&mut self, before: u64, revision: u64) {
        if revision <= self.seen {
            return;
        }
        let due = self.due.get_or_insert(Due { before, revision });
        due.revision = due.revision.max(revision);
    }

    /// Everybody was told whom the revisions up to this one concern. If nothing is due to this stream, they are nothing
    /// to it, and it is as up to date as before.
    pub fn sleep_until(&mut self, revision: u64) {
        if self.due.is_some() || revision <= self.seen {
            return;
        }
        let seen = std::mem::replace(&mut self.seen, revision);
        let each = self.acked_by_type.iter_mut().map(|(_, acked)| acked);
        for upto in each.chain([&mut self.settled, &mut self.acked]).filter(|upto| **upto >= seen) {
            *upto = revision;
        }
    }

    /// Takes over where the session stands, at a revision. Returns what waits look at.
    pub fn update<'a>(
        &mut self,
        statuses: impl Iterator<Item = TypeStatus<'a>> + Clone,
        revision: u64,
        now: impl FnOnce() -> Instant,
    ) -> (u64, u64, Option<u64>) {
        let before = self.settled;
        self.seen = revision;
        self.sent = statuses.clone().map(|status| status.sent_revision).max().unwrap_or(0);
        self.acked = statuses.clone().map(|status| status.acked_revision).min().unwrap_or(revision);
        self.settled = statuses.clone().map(|status| status.settled_revision).min().unwrap_or(revision);
        self.nacked = statuses.clone().filter_map(|status| Some(status.nacked?.revision)).max();
        (self.unsent, self.in_flight) = statuses.clone().fold((0, 0), |(unsent, in_flight), status| {
            (unsent + u32::from(status.unsent), in_flight + u32::from(status.in_flight))
        });
        for status in statuses {
            let acked = status.acked_revision;
            match self.acked_by_type.iter_mut().find(|(of, _)| of == status.type_url) {
                Some((_, before)) => *before = acked,
                None => self.acked_by_type.push((status.type_url.clone(), acked)),
            }
        }
        self.unanswered_since = match self.unanswered_since {
            _ if self.settled >= revision => None,
            Some(since) if self.settled <= before => Some(since),
            _ => Some(now()),
        };
        self.looked();
        (self.seen, self.settled, self.nacked)
    }

    /// What is not newer than what was seen is not due any more.
    fn looked(&mut self) {
        self.due = self.due.filter(|due| due.revision > self.seen);
    }

    /// Whether the client takes part.
    pub fn health(&self, now: Instant) -> Health {
        let longer =
            |since: Option<Instant>, than| since.is_some_and(|at| now.saturating_duration_since(at) > than);
        match () {
            () if longer(self.heartbeat_since, HEARTBEAT_PATIENCE) => Health::Stale,
            () if longer(self.unanswered_since, RESPONSE_PATIENCE) => Health::Stale,
            () if self.nacked.is_some() => Health::Refused,
            () if self.settled < self.seen => Health::Syncing,
            () => Health::Synced,
        }
    }

    /// What the stream is to somebody who waits for `revision` and was told `before` of it.
    pub fn standing(&self, revision: u64, before: Option<Standing>) -> Standing {
        let answer = match self.nacked {
            _ if self.settled < revision => Standing::Pending,
            Some(nacked) if nacked >= revision => Standing::Refused,
            _ => Standing::Acked,
        };
        if self.seen < revision {
            return Standing::Pending;
        }
        match self.changes.concerned_by(revision) {
            Some(true) => answer,
            Some(false) => Standing::Unconcerned,
            // Whoever has answered everything since is up to date, concerned or not. If it was waited for, that is
            // the answer; otherwise it never mattered.
            None if answer == Standing::Acked && before.is_none() => Standing::Unconcerned,
            None => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(seen: u64, settled: u64) -> Position {
        Position { seen, settled, acked: settled, ..Position::new(0, Instant::now()) }
    }

    #[test]
    fn a_revision_concerns_those_whose_view_changed_with_it() {
        let mut changes = Changes::after(10);
        changes.record(12, 13);
        changes.record(20, 25);
        let concerned = |revision| changes.concerned_by(revision);
        assert_eq!((concerned(9), concerned(10)), (None, None));
        assert_eq!((concerned(11), concerned(12), concerned(13)), (Some(false), Some(false), Some(true)));
        assert_eq!((concerned(14), concerned(20)), (Some(false), Some(false)));
        assert_eq!((concerned(21), concerned(25), concerned(26)), (Some(true), Some(true), Some(false)));
    }

    #[test]
    fn changes_that_are_forgotten_are_said_to_be() {
        let mut changes = Changes::after(0);
        for revision in 1..=REMEMBERED_CHANGES as u64 + 1 {
            changes.record(revision - 1, revision);
        }
        assert_eq!((changes.concerned_by(1), changes.concerned_by(2)), (None, Some(true)));
        assert_eq!(changes.steps.len(), REMEMBERED_CHANGES);
    }

    #[test]
    fn who_is_not_concerned_is_not_waited_for_even_if_it_lags_on_something_else() {
        let mut lagging = position(7, 4);
        lagging.changes.record(4, 5);
        assert_eq!(lagging.standing(5, None), Standing::Pending);
        assert_eq!(lagging.standing(6, None), Standing::Unconcerned);
        assert_eq!(lagging.standing(8, None), Standing::Pending, "it has not looked yet");
    }

    #[test]
    fn a_refusal_counts_once_everything_was_tried() {
        let mut refusing = Position { nacked: Some(5), ..position(5, 4) };
        refusing.changes.record(4, 5);
        assert_eq!(refusing.standing(5, None), Standing::Pending);
        refusing.settled = 5;
        assert_eq!(refusing.standing(5, None), Standing::Refused);
        refusing.nacked = Some(3);
        assert_eq!(refusing.standing(5, None), Standing::Acked, "an older refusal is another matter");
    }

    #[test]
    fn of_the_forgotten_past_only_those_who_lag_are_waited_for() {
        let forgotten = |settled| Position { changes: Changes::after(9), ..position(9, settled) };
        assert_eq!(forgotten(9).standing(5, None), Standing::Unconcerned);
        assert_eq!(forgotten(4).standing(5, None), Standing::Pending);
        assert_eq!(forgotten(9).standing(5, Some(Standing::Pending)), Standing::Acked);
    }

    #[test]
    fn a_change_has_converged_once_when_every_type_has_it() {
        let mut position = position(5, 5);
        assert_eq!(position.converged().count(), 0);
        position.changes.record(5, 6);
        position.changes.record(7, 9);
        let cds: Arc<str> = "cds".into();
        let status = |acked: u64, unsent, in_flight| TypeStatus {
            type_url: &cds,
            sent_revision: 9,
            settled_revision: acked,
            acked_revision: acked,
            nacked: None,
            unsent,
            in_flight,
        };
        position.update([status(6, false, true), status(5, true, false)].into_iter(), 9, Instant::now);
        assert_eq!((position.converged().count(), position.queued(), position.in_flight), (0, 1, 1));
        position.update([status(6, true, true), status(6, true, true)].into_iter(), 9, Instant::now);
        assert_eq!((position.converged().collect::<Vec<_>>(), position.queued()), (vec![5], 2));
        // The client subscribes to something else, and has nothing of that yet.
        position.update([status(6, false, false), status(0, true, false)].into_iter(), 9, Instant::now);
        assert_eq!(position.converged().count(), 0);
        position.update([status(9, false, false), status(9, false, false)].into_iter(), 9, Instant::now);
        assert_eq!(
            (position.converged().collect::<Vec<_>>(), position.queued()),
            (vec![7], 0),
            "told once each"
        );
        position.note_due(9, 10);
        assert_eq!(position.queued(), 1, "what is not looked at is to be sent, as far as is known");
    }

    #[test]
    fn what_concerns_a_sleeping_stream_is_due_until_it_has_looked_and_the_rest_is_nothing_to_it() {
        let mut sleeping = position(5, 5);
        sleeping.acked_by_type = vec![("cds".into(), 5), ("eds".into(), 4)];
        sleeping.sleep_until(7);
        assert_eq!((sleeping.seen, sleeping.settled, sleeping.acked), (7, 7, 7));
        assert_eq!(sleeping.acked_by_type, [("cds".into(), 7), ("eds".into(), 4)], "what lagged lags");
        sleeping.note_due(7, 8);
        sleeping.note_due(9, 10);
        sleeping.sleep_until(11);
        assert_eq!((sleeping.seen, sleeping.due), (7, Some(Due { before: 7, revision: 10 })));
        assert_eq!(sleeping.standing(9, None), Standing::Pending, "it has not looked");
        let nothing = || std::iter::empty::<TypeStatus<'_>>();
        sleeping.update(nothing(), 8, Instant::now);
        assert_eq!(sleeping.due.map(|due| due.revision), Some(10), "it was told of more since");
        sleeping.update(nothing(), 10, Instant::now);
        assert_eq!(sleeping.due, None);
        sleeping.sleep_until(11);
        assert_eq!((sleeping.seen, sleeping.settled), (11, 11));
    }

    #[test]
    fn a_connected_client_that_answers_nothing_is_stale() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut position = Position { unanswered_since: None, ..position(5, 5) };
        assert_eq!(position.health(at(1_000)), Health::Synced, "silence with nothing to say is fine");
        position.heartbeat_since = Some(start);
        assert_eq!((position.health(at(20)), position.health(at(21))), (Health::Synced, Health::Stale));
        position.heartbeat_since = None;
        position.seen = 6;
        position.unanswered_since = Some(start);
        assert_eq!((position.health(at(30)), position.health(at(31))), (Health::Syncing, Health::Stale));
        let refused = Position { nacked: Some(6), settled: 6, unanswered_since: None, ..position };
        assert_eq!(refused.health(at(1)), Health::Refused);
    }
}
