//! One data plane in a wait: what its streams, at whichever replica, amount to.

use std::collections::BTreeMap;

use xds_proto::isthmus::admin::v1::{StreamReport, WaitingFor};

/// A data plane that a revision concerns, or may.
#[derive(Debug)]
pub(super) struct Plane {
    kind: String,
    /// By replica and number of the stream.
    streams: BTreeMap<(u64, u64), Told>,
    /// The newest connection, for show.
    last: (u64, StreamReport),
    acked: bool,
    state: State,
    /// None: nobody has judged yet.
    since_ms: Option<u64>,
}

/// What was said of a stream last.
#[derive(Debug)]
struct Told {
    report: StreamReport,
    /// By a replica that has stopped telling: it may have been heard of elsewhere since.
    lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Refused,
    Pending,
    Disconnected,
    Acked,
}

impl Plane {
    pub fn new(replica: u64, report: &StreamReport) -> Self {
        Self {
            kind: report.kind.clone(),
            streams: BTreeMap::new(),
            last: (replica, report.clone()),
            acked: false,
            state: State::Pending,
            since_ms: None,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// It has said what there is to say.
    pub fn has_answered(&self) -> bool {
        matches!(self.state, State::Acked | State::Refused)
    }

    /// A replica that answers has a stream of it.
    pub fn is_connected(&self) -> bool {
        self.streams.values().any(|told| !told.lost)
    }

    /// It was taken for concerned only until it was known that it is not.
    pub fn is_unconcerned(&self) -> bool {
        self.streams.is_empty() && !self.acked
    }

    /// A replica that tells has a stream of it.
    pub fn is_at(&self, replica: u64) -> bool {
        self.streams.keys().any(|(at, _)| *at == replica)
    }

    /// To be followed by [`Plane::refresh`], as [`Plane::end`] is.
    pub fn tell(&mut self, replica: u64, report: StreamReport) {
        if report.connected_unix_ms >= self.last.1.connected_unix_ms {
            self.last = (replica, report.clone());
        }
        self.streams.insert((replica, report.stream), Told { report, lost: false });
    }

    pub fn end(&mut self, replica: u64, stream: u64) {
        self.streams.remove(&(replica, stream));
    }

    /// A replica starts anew: its streams of before are gone.
    pub fn drop_streams(&mut self, replica: u64, now_ms: u64) {
        self.streams.retain(|(at, _), _| *at != replica);
        self.refresh(false, now_ms);
    }

    /// A replica tells no more. What it said last is what is known, until another one knows better.
    pub fn lose(&mut self, replica: u64, now_ms: u64) {
        let of_replica = self.streams.iter_mut().filter(|((at, _), _)| *at == replica);
        of_replica.for_each(|(_, told)| told.lost = true);
        self.refresh(false, now_ms);
    }

    pub fn on_wire(&self, id: &str, now_ms: u64) -> WaitingFor {
        let (replica, last) = &self.last;
        let state = match self.state {
            State::Refused => "refused",
            State::Disconnected => "disconnected",
            State::Pending | State::Acked => "pending",
        };
        WaitingFor {
            id: id.to_owned(),
            kind: self.kind.clone(),
            replica: *replica,
            state: state.to_owned(),
            acked_revision: last.acked_revision,
            connected_unix_ms: last.connected_unix_ms,
            state_ms: now_ms.saturating_sub(self.since_ms.unwrap_or(now_ms)),
            error: last.error.clone(),
        }
    }

    /// Takes what was told together. `lasting`: the replica that told has told all, and what has ACKed with all of its
    /// streams there has the revision, whatever becomes of the streams.
    pub fn refresh(&mut self, lasting: bool, now_ms: u64) {
        let state = self.judge();
        self.acked |= lasting && state == State::Acked;
        if state != self.state || self.since_ms.is_none() {
            (self.state, self.since_ms) = (state, Some(now_ms));
        }
    }

    fn judge(&self) -> State {
        if self.acked {
            return State::Acked;
        }
        let connected = self.is_connected();
        let known = || self.streams.iter().filter(|(_, told)| told.lost != connected);
        let newest = known().max_by_key(|(_, told)| told.report.connected_unix_ms);
        let Some(((replica, _), _)) = newest else { return State::Disconnected };
        let of_replica = known().filter(|((at, _), _)| at == replica);
        let standings: Vec<&str> = of_replica.map(|(_, told)| told.report.standing.as_str()).collect();
        match () {
            () if standings.contains(&"refused") => State::Refused,
            () if standings.iter().all(|standing| *standing == "acked") => State::Acked,
            () => State::Pending,
        }
    }
}
