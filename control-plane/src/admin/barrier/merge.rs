//! What all replicas report of one wait, put together by data plane. Pure: the time is an argument.
//!
//! A data plane is its client id, not its stream: one that reconnects, to whichever replica, goes on where it was.
//! Where two replicas report the same one (a connection that is dead but not yet found out), the newer connection counts.

use std::collections::BTreeMap;

use xds_proto::isthmus::admin::v1::{StreamReport, WaitProgress, WaitReports, WaitingFor};

/// A replica that has not answered for so long is not waited for. Its data planes are, if it told of them.
pub const REPLICA_PATIENCE_MS: u64 = 5_000;
/// Data planes named while the wait goes on, and at its end.
const SHOWN: usize = 20;
const SHOWN_AT_THE_END: usize = 1_000;

/// How far a wait is.
#[derive(Debug)]
pub struct Merge {
    revision: u64,
    started_ms: u64,
    replicas: BTreeMap<u64, Part>,
    planes: BTreeMap<String, Plane>,
}

#[derive(Debug, Default)]
struct Part {
    complete: bool,
    /// Since when it does not answer, and why.
    lost: Option<(u64, String)>,
}

#[derive(Debug)]
struct Plane {
    kind: String,
    /// By replica and number of the stream.
    streams: BTreeMap<(u64, u64), StreamReport>,
    /// The newest connection, for show.
    last: (u64, StreamReport),
    acked: bool,
    state: State,
    since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Refused,
    Pending,
    Disconnected,
    Acked,
}

impl Plane {
    fn state(&self) -> State {
        if self.acked {
            return State::Acked;
        }
        let newest = self.streams.iter().max_by_key(|(_, report)| report.connected_unix_ms);
        let Some(((replica, _), _)) = newest else { return State::Disconnected };
        let of_replica = self.streams.iter().filter(|((at, _), _)| at == replica).map(|(_, report)| report);
        let standings: Vec<&str> = of_replica.map(|report| report.standing.as_str()).collect();
        match () {
            () if standings.contains(&"refused") => State::Refused,
            () if standings.iter().all(|standing| *standing == "acked") => State::Acked,
            () => State::Pending,
        }
    }

    fn refresh(&mut self, now_ms: u64) {
        let state = self.state();
        self.acked |= state == State::Acked;
        if state != self.state {
            (self.state, self.since_ms) = (state, now_ms);
        }
    }
}

impl Merge {
    /// Nothing is known yet of these replicas.
    pub fn new(revision: u64, replicas: impl IntoIterator<Item = u64>, now_ms: u64) -> Self {
        Self {
            revision,
            started_ms: now_ms,
            replicas: replicas.into_iter().map(|id| (id, Part::default())).collect(),
            planes: BTreeMap::new(),
        }
    }

    /// A replica begins to tell, from the start.
    pub fn on_begin(&mut self, replica: u64, now_ms: u64) {
        self.replicas.insert(replica, Part::default());
        self.drop_streams(replica, now_ms);
    }

    /// A replica has more to tell.
    pub fn on_reports(&mut self, replica: u64, reports: WaitReports, now_ms: u64) {
        self.replicas.entry(replica).or_default().complete = reports.complete;
        for report in reports.streams {
            self.on_report(replica, report, now_ms);
        }
    }

    /// A replica has stopped telling.
    pub fn on_lost(&mut self, replica: u64, why: String, now_ms: u64) {
        let part = self.replicas.entry(replica).or_default();
        part.complete = false;
        let since = part.lost.as_ref().map_or(now_ms, |(since, _)| *since);
        part.lost = Some((since, why));
        self.drop_streams(replica, now_ms);
    }

    /// Data planes that are disconnected and will not come back, because their workload, node or peer is gone.
    pub fn forget(&mut self, exists: impl Fn(&str) -> bool) {
        self.planes.retain(|id, plane| plane.state != State::Disconnected || exists(id));
    }

    /// Whether [`Merge::forget`] has anything to ask.
    pub fn has_disconnected(&self) -> bool {
        self.planes.values().any(|plane| plane.state == State::Disconnected)
    }

    /// Everybody has answered.
    pub fn is_settled(&self, now_ms: u64) -> bool {
        let heard = |part: &Part| part.complete || given_up(part, now_ms);
        let answered = |plane: &Plane| matches!(plane.state, State::Acked | State::Refused);
        self.replicas.values().all(heard) && self.planes.values().all(answered)
    }

    /// What there is to say. `over`: nothing more will be.
    pub fn progress(&self, now_ms: u64, over: bool) -> WaitProgress {
        let count = |state| self.planes.values().filter(|plane| plane.state == state).count() as u32;
        let (acked, refused) = (count(State::Acked), count(State::Refused));
        let state = match () {
            () if !over => "waiting",
            () if !self.is_settled(now_ms) => "timed out",
            () if refused > 0 => "refused",
            () => "done",
        };
        let mut open: Vec<_> = self.planes.iter().filter(|(_, plane)| plane.state != State::Acked).collect();
        open.sort_by_key(|(id, plane)| (plane.state, *id));
        open.truncate(if over { SHOWN_AT_THE_END } else { SHOWN });
        let lost = self.replicas.iter().filter_map(|(id, part)| {
            let (since, why) = part.lost.as_ref()?;
            let seconds = now_ms.saturating_sub(*since) / 1_000;
            Some(format!(
                "replica {id} has not answered for {seconds} s, data planes connected to it are not counted ({why})"
            ))
        });
        WaitProgress {
            revision: self.revision,
            state: state.to_owned(),
            concerned: self.planes.len() as u32,
            acked,
            refused,
            waiting_for: open.into_iter().map(|(id, plane)| waiting_for(id, plane, now_ms)).collect(),
            remarks: lost.collect(),
            elapsed_ms: u32::try_from(now_ms.saturating_sub(self.started_ms)).unwrap_or(u32::MAX),
        }
    }

    fn on_report(&mut self, replica: u64, report: StreamReport, now_ms: u64) {
        let key = (replica, report.stream);
        let known = self.planes.contains_key(&report.id);
        match report.standing.as_str() {
            "unconcerned" | "closed" if !known => {}
            "unconcerned" => {
                let Some(plane) = self.planes.get_mut(&report.id) else { return };
                plane.streams.remove(&key);
                // It was pending only until it was known that it is not concerned.
                if plane.streams.is_empty() && !plane.acked {
                    self.planes.remove(&report.id);
                    return;
                }
                plane.refresh(now_ms);
            }
            "closed" => {
                let Some(plane) = self.planes.get_mut(&report.id) else { return };
                plane.streams.remove(&key);
                plane.refresh(now_ms);
            }
            _ => {
                let plane = self.planes.entry(report.id.clone()).or_insert_with(|| Plane {
                    kind: report.kind.clone(),
                    streams: BTreeMap::new(),
                    last: (replica, report.clone()),
                    acked: false,
                    state: State::Pending,
                    since_ms: now_ms,
                });
                if report.connected_unix_ms >= plane.last.1.connected_unix_ms {
                    plane.last = (replica, report.clone());
                }
                plane.streams.insert(key, report);
                plane.refresh(now_ms);
            }
        }
    }

    fn drop_streams(&mut self, replica: u64, now_ms: u64) {
        for plane in self.planes.values_mut() {
            plane.streams.retain(|(at, _), _| *at != replica);
            plane.refresh(now_ms);
        }
    }
}

fn given_up(part: &Part, now_ms: u64) -> bool {
    part.lost.as_ref().is_some_and(|(since, _)| now_ms.saturating_sub(*since) >= REPLICA_PATIENCE_MS)
}

fn waiting_for(id: &str, plane: &Plane, now_ms: u64) -> WaitingFor {
    let (replica, last) = &plane.last;
    let state = match plane.state {
        State::Refused => "refused",
        State::Disconnected => "disconnected",
        State::Pending | State::Acked => "pending",
    };
    WaitingFor {
        id: id.to_owned(),
        kind: plane.kind.clone(),
        replica: *replica,
        state: state.to_owned(),
        acked_revision: last.acked_revision,
        connected_unix_ms: last.connected_unix_ms,
        state_ms: now_ms.saturating_sub(plane.since_ms),
        error: last.error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stream: u64, id: &str, standing: &str, connected: u64) -> StreamReport {
        StreamReport {
            stream,
            id: id.to_owned(),
            kind: "proxy".to_owned(),
            standing: standing.to_owned(),
            acked_revision: 6,
            connected_unix_ms: connected,
            error: if standing == "refused" { "no such filter".to_owned() } else { String::new() },
        }
    }

    fn tell(merge: &mut Merge, replica: u64, at: u64, streams: Vec<StreamReport>) {
        merge.on_reports(replica, WaitReports { complete: true, streams }, at);
    }

    fn state(merge: &Merge, at: u64) -> (u32, u32, String) {
        let progress = merge.progress(at, true);
        (progress.acked, progress.concerned, progress.state)
    }

    #[test]
    fn it_is_over_when_every_replica_has_told_and_every_data_plane_has_acked() {
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 10, vec![report(1, "a", "pending", 1)]);
        assert!(!merge.is_settled(10), "replica 2 has not told");
        tell(&mut merge, 2, 20, vec![report(1, "b", "pending", 1)]);
        tell(&mut merge, 1, 30, vec![report(1, "a", "acked", 1)]);
        assert!(!merge.is_settled(30));
        let waiting = merge.progress(30, false);
        assert_eq!((waiting.acked, waiting.concerned, waiting.state.as_str()), (1, 2, "waiting"));
        assert_eq!((waiting.waiting_for[0].id.as_str(), waiting.waiting_for[0].state_ms), ("b", 10));
        tell(&mut merge, 2, 40, vec![report(1, "b", "acked", 1)]);
        assert!(merge.is_settled(40));
        assert_eq!(state(&merge, 40), (2, 2, "done".to_owned()));
    }

    #[test]
    fn a_data_plane_that_moves_to_another_replica_is_waited_for_there() {
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1)]);
        tell(&mut merge, 2, 0, vec![]);
        tell(&mut merge, 1, 5, vec![report(1, "a", "closed", 1)]);
        assert!(!merge.is_settled(5));
        assert_eq!(merge.progress(9, false).waiting_for[0].state, "disconnected");
        tell(&mut merge, 2, 10, vec![report(4, "a", "pending", 9)]);
        assert_eq!(merge.progress(10, false).waiting_for[0].replica, 2);
        tell(&mut merge, 2, 11, vec![report(4, "a", "acked", 9)]);
        assert_eq!(state(&merge, 11), (1, 1, "done".to_owned()));
    }

    #[test]
    fn the_newer_of_two_connections_counts() {
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1)]);
        tell(&mut merge, 2, 0, vec![report(1, "a", "acked", 5)]);
        assert!(merge.is_settled(0), "the one at replica 1 is dead");
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 5)]);
        tell(&mut merge, 2, 0, vec![report(1, "a", "acked", 1), report(2, "b", "pending", 1)]);
        assert!(!merge.is_settled(0));
    }

    #[test]
    fn all_streams_of_a_client_must_have_acked() {
        let mut merge = Merge::new(7, [1], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "acked", 1), report(2, "a", "acked", 2)]);
        assert!(merge.is_settled(0));
        let mut merge = Merge::new(7, [1], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1), report(2, "a", "acked", 2)]);
        assert!(!merge.is_settled(0));
    }

    #[test]
    fn a_refusal_ends_the_wait_and_is_told_in_the_clients_words() {
        let mut merge = Merge::new(7, [1], 0);
        tell(&mut merge, 1, 0, vec![report(1, "b", "refused", 1), report(2, "a", "acked", 1)]);
        let over = merge.progress(0, merge.is_settled(0));
        assert_eq!((over.state.as_str(), over.refused, over.acked), ("refused", 1, 1));
        assert_eq!(over.waiting_for[0].error, "no such filter");
    }

    #[test]
    fn one_that_turns_out_not_to_be_concerned_is_not_counted() {
        let mut merge = Merge::new(7, [1], 0);
        merge.on_reports(1, WaitReports { complete: false, streams: vec![report(1, "a", "pending", 1)] }, 0);
        assert!(!merge.is_settled(0));
        tell(&mut merge, 1, 1, vec![report(1, "a", "unconcerned", 1)]);
        assert_eq!(state(&merge, 1), (0, 0, "done".to_owned()));
    }

    #[test]
    fn a_data_plane_whose_workload_is_gone_is_waited_for_no_longer() {
        let mut merge = Merge::new(7, [1], 0);
        tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1), report(2, "b", "pending", 1)]);
        tell(&mut merge, 1, 1, vec![report(1, "a", "closed", 1)]);
        merge.forget(|_| false);
        assert_eq!(merge.progress(1, false).concerned, 1, "b is connected");
        tell(&mut merge, 1, 2, vec![report(2, "b", "acked", 1)]);
        assert!(merge.is_settled(2));
    }

    #[test]
    fn a_replica_that_does_not_answer_is_given_up_and_said_to_be() {
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 0, vec![]);
        merge.on_lost(2, "connection refused".to_owned(), 100);
        merge.on_lost(2, "connection refused".to_owned(), 4_000);
        assert!(!merge.is_settled(100 + REPLICA_PATIENCE_MS - 1));
        assert!(merge.is_settled(100 + REPLICA_PATIENCE_MS));
        let over = merge.progress(6_100, true);
        assert_eq!(over.state, "done");
        assert!(over.remarks[0].contains("replica 2 has not answered for 6 s"), "{:?}", over.remarks);
    }

    #[test]
    fn the_data_planes_of_a_replica_that_dies_meanwhile_are_still_waited_for() {
        let mut merge = Merge::new(7, [1, 2], 0);
        tell(&mut merge, 1, 0, vec![]);
        tell(&mut merge, 2, 0, vec![report(1, "a", "pending", 1)]);
        merge.on_lost(2, "gone".to_owned(), 10);
        assert!(!merge.is_settled(60_000));
        assert_eq!(state(&merge, 60_000).2, "timed out");
        tell(&mut merge, 1, 20, vec![report(9, "a", "pending", 15), report(9, "a", "acked", 15)]);
        assert!(merge.is_settled(60_000));
    }
}
