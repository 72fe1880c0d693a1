//! What all replicas report of one wait, put together by data plane. Pure: the time is an argument.
//!
//! A data plane is its client id, not its stream: one that reconnects, to whichever replica, goes on where it was.
//! Where two replicas report the same one (a connection that is dead but not yet found out), the newer connection counts.
//!
//! What is not known is not done. A replica that does not answer may serve data planes that nobody else knows of, and an
//! agent that is connected nowhere enforces what it had: both keep a wait open to its end, and are named there.

mod plane;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use xds_proto::isthmus::admin::v1::{SilentReplica, StreamReport, WaitProgress, WaitReports, WaitingFor};

use self::plane::{Plane, State};
use crate::admin::absent;

/// A replica that has told nothing for so long is said to be silent. It is waited for all the same.
pub const SILENCE_MS: u64 = 1_000;
/// Data planes named while the wait goes on, and at its end.
const SHOWN: usize = 20;
const SHOWN_AT_THE_END: usize = 1_000;

/// How far a wait is.
#[derive(Debug)]
pub struct Merge {
    revision: u64,
    started_ms: u64,
    replicas: BTreeMap<u64, Part>,
    /// Registered nodes whose agents no replica has named.
    unseen: BTreeSet<String>,
    planes: BTreeMap<String, Plane>,
}

#[derive(Debug)]
struct Part {
    address: String,
    complete: bool,
    /// When it said something last, or the wait began.
    heard_ms: u64,
    /// Why it does not answer, if that is known.
    lost: String,
}

impl Part {
    fn is_silent(&self, now_ms: u64) -> bool {
        !self.complete && now_ms.saturating_sub(self.heard_ms) >= SILENCE_MS
    }
}

impl Merge {
    /// Nothing is known yet of these replicas, each with its address, nor of the agents of these nodes.
    pub fn new<'a>(
        revision: u64,
        replicas: impl IntoIterator<Item = (u64, String)>,
        nodes: impl IntoIterator<Item = &'a str>,
        now_ms: u64,
    ) -> Self {
        let part = |address| Part { address, complete: false, heard_ms: now_ms, lost: String::new() };
        Self {
            revision,
            started_ms: now_ms,
            replicas: replicas.into_iter().map(|(id, address)| (id, part(address))).collect(),
            unseen: nodes.into_iter().map(str::to_owned).collect(),
            planes: BTreeMap::new(),
        }
    }

    /// A replica begins to tell, from the start.
    pub fn on_begin(&mut self, replica: u64, now_ms: u64) {
        let Some(part) = self.replicas.get_mut(&replica) else { return };
        (part.complete, part.heard_ms) = (false, now_ms);
        part.lost.clear();
        self.planes.values_mut().for_each(|plane| plane.drop_streams(replica, now_ms));
    }

    /// A replica has more to tell.
    pub fn on_reports(&mut self, replica: u64, reports: WaitReports, now_ms: u64) {
        let Some(part) = self.replicas.get_mut(&replica) else { return };
        (part.complete, part.heard_ms) = (reports.complete, now_ms);
        for node in reports.agents {
            self.unseen.remove(&node);
        }
        let complete = reports.complete;
        let mut named = BTreeSet::new();
        for report in reports.streams {
            if let Some(node) = report.id.strip_prefix("agent~") {
                self.unseen.remove(node);
            }
            named.insert(report.id.clone());
            self.on_report(replica, report);
        }
        // Judged once everything that the replica knows was heard: a client may have several streams, of which the first
        // that is told of may be the only one that has ACKed.
        for id in named {
            let Some(plane) = self.planes.get_mut(&id) else { continue };
            plane.refresh(complete, now_ms);
        }
        if complete {
            self.planes
                .values_mut()
                .filter(|plane| plane.is_at(replica))
                .for_each(|p| p.refresh(true, now_ms));
        }
    }

    /// A replica has stopped telling.
    pub fn on_lost(&mut self, replica: u64, why: String, now_ms: u64) {
        let Some(part) = self.replicas.get_mut(&replica) else { return };
        (part.complete, part.lost) = (false, why);
        self.planes.values_mut().for_each(|plane| plane.lose(replica, now_ms));
    }

    /// Data planes that no replica serves and that will not come back, because their workload, node or peer is gone; and
    /// replicas that are members no more.
    pub fn forget(&mut self, exists: impl Fn(&str) -> bool, is_member: impl Fn(u64) -> bool) {
        self.replicas.retain(|id, _| is_member(*id));
        self.unseen.retain(|node| exists(&agent(node)));
        self.planes.retain(|id, plane| plane.has_answered() || plane.is_connected() || exists(id));
    }

    /// Whether [`Merge::forget`] has anything to ask.
    pub fn misses_somebody(&self) -> bool {
        self.replicas.values().any(|part| !part.complete)
            || !self.unseen.is_empty()
            || self.planes.values().any(|plane| !plane.has_answered() && !plane.is_connected())
    }

    /// Everybody has answered, and there is nobody of whom nothing is known.
    pub fn is_settled(&self) -> bool {
        self.replicas.values().all(|part| part.complete)
            && self.unseen.is_empty()
            && self.planes.values().all(Plane::has_answered)
    }

    /// What there is to say. `over`: nothing more will be.
    pub fn progress(&self, now_ms: u64, over: bool) -> WaitProgress {
        let count = |state| self.planes.values().filter(|plane| plane.state() == state).count() as u32;
        let (acked, refused) = (count(State::Acked), count(State::Refused));
        let state = match () {
            () if !over => "waiting",
            () if !self.is_settled() => "timed out",
            () if refused > 0 => "refused",
            () => "done",
        };
        let shown = if over { SHOWN_AT_THE_END } else { SHOWN };
        let mut open: Vec<_> =
            self.planes.iter().filter(|(_, plane)| plane.state() != State::Acked).collect();
        open.sort_by_key(|(id, plane)| (plane.state(), *id));
        let absent = self.absent(now_ms, over);
        let concerned = self.planes.len() + absent.len();
        let open = open.into_iter().map(|(id, plane)| plane.on_wire(id, now_ms));
        WaitProgress {
            revision: self.revision,
            state: state.to_owned(),
            concerned: u32::try_from(concerned).unwrap_or(u32::MAX),
            acked,
            refused,
            waiting_for: open.chain(absent).take(shown).collect(),
            elapsed_ms: u32::try_from(now_ms.saturating_sub(self.started_ms)).unwrap_or(u32::MAX),
            silent: self.silent(now_ms, over).collect(),
        }
    }

    fn silent(&self, now_ms: u64, over: bool) -> impl Iterator<Item = SilentReplica> {
        let silent = move |part: &Part| part.is_silent(now_ms) || (over && !part.complete);
        self.replicas.iter().filter(move |(_, part)| silent(part)).map(move |(id, part)| SilentReplica {
            id: *id,
            address: part.address.clone(),
            silent_ms: now_ms.saturating_sub(part.heard_ms),
            error: part.lost.clone(),
        })
    }

    /// Agents that nobody serves: known once every replica has told, or is known not to.
    fn absent(&self, now_ms: u64, over: bool) -> Vec<WaitingFor> {
        let told = |part: &Part| over || part.complete || part.is_silent(now_ms);
        if self.unseen.is_empty() || !self.replicas.values().all(told) {
            return Vec::new();
        }
        let silent = self.replicas.iter().filter(|(_, part)| !part.complete).map(|(id, _)| *id).collect();
        let rows = absent::agents(self.unseen.iter().map(String::as_str), &[], &[], &silent);
        let waiting = rows.into_iter().map(|row| WaitingFor {
            id: row.id,
            kind: row.kind,
            state: row.state,
            state_ms: now_ms.saturating_sub(self.started_ms),
            error: row.last_error,
            ..Default::default()
        });
        waiting.collect()
    }

    fn on_report(&mut self, replica: u64, report: StreamReport) {
        match report.standing.as_str() {
            "unconcerned" | "closed" => {
                let Some(plane) = self.planes.get_mut(&report.id) else { return };
                plane.end(replica, report.stream);
                if report.standing == "unconcerned" && plane.is_unconcerned() {
                    self.planes.remove(&report.id);
                }
            }
            _ => {
                let new = || Plane::new(replica, &report);
                self.planes.entry(report.id.clone()).or_insert_with(new).tell(replica, report);
            }
        }
    }
}

fn agent(node: &str) -> String {
    format!("agent~{node}")
}
