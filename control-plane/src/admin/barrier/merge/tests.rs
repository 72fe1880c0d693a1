//! Waits, told step by step.

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

fn of(replicas: &[u64]) -> Merge {
    with_nodes(replicas, &[])
}

fn with_nodes(replicas: &[u64], nodes: &[&str]) -> Merge {
    let address = |id: &u64| (*id, format!("10.0.0.{id}:9443"));
    Merge::new(7, replicas.iter().map(address), nodes.iter().copied(), 0)
}

fn tell(merge: &mut Merge, replica: u64, at: u64, streams: Vec<StreamReport>) {
    merge.on_reports(replica, WaitReports { complete: true, streams, ..Default::default() }, at);
}

fn state(merge: &Merge, at: u64) -> (u32, u32, String) {
    let progress = merge.progress(at, true);
    (progress.acked, progress.concerned, progress.state)
}

#[test]
fn it_is_over_when_every_replica_has_told_and_every_data_plane_has_acked() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 10, vec![report(1, "a", "pending", 1)]);
    assert!(!merge.is_settled(), "replica 2 has not told");
    tell(&mut merge, 2, 20, vec![report(1, "b", "pending", 1)]);
    tell(&mut merge, 1, 30, vec![report(1, "a", "acked", 1)]);
    assert!(!merge.is_settled());
    let waiting = merge.progress(30, false);
    assert_eq!((waiting.acked, waiting.concerned, waiting.state.as_str()), (1, 2, "waiting"));
    assert_eq!((waiting.waiting_for[0].id.as_str(), waiting.waiting_for[0].state_ms), ("b", 10));
    tell(&mut merge, 2, 40, vec![report(1, "b", "acked", 1)]);
    assert!(merge.is_settled());
    assert_eq!(state(&merge, 40), (2, 2, "done".to_owned()));
}

#[test]
fn a_data_plane_that_moves_to_another_replica_is_waited_for_there() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1)]);
    tell(&mut merge, 2, 0, vec![]);
    tell(&mut merge, 1, 5, vec![report(1, "a", "closed", 1)]);
    assert!(!merge.is_settled());
    assert_eq!(merge.progress(9, false).waiting_for[0].state, "disconnected");
    tell(&mut merge, 2, 10, vec![report(4, "a", "pending", 9)]);
    assert_eq!(merge.progress(10, false).waiting_for[0].replica, 2);
    tell(&mut merge, 2, 11, vec![report(4, "a", "acked", 9)]);
    assert_eq!(state(&merge, 11), (1, 1, "done".to_owned()));
}

#[test]
fn the_newer_of_two_connections_counts() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1)]);
    tell(&mut merge, 2, 0, vec![report(1, "a", "acked", 5)]);
    assert!(merge.is_settled(), "the one at replica 1 is dead");
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 5)]);
    tell(&mut merge, 2, 0, vec![report(1, "a", "acked", 1), report(2, "b", "pending", 1)]);
    assert!(!merge.is_settled());
}

#[test]
fn all_streams_of_a_client_must_have_acked() {
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "acked", 1), report(2, "a", "acked", 2)]);
    assert!(merge.is_settled());
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1), report(2, "a", "acked", 2)]);
    assert!(!merge.is_settled());
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "acked", 1), report(2, "a", "pending", 2)]);
    assert!(!merge.is_settled(), "in the other order");
    tell(&mut merge, 1, 1, vec![report(2, "a", "acked", 2)]);
    assert!(merge.is_settled());
    let mut merge = of(&[1]);
    let part = |streams| WaitReports { streams, ..Default::default() };
    merge.on_reports(1, part(vec![report(1, "a", "acked", 1)]), 0);
    tell(&mut merge, 1, 0, vec![report(2, "a", "pending", 2)]);
    assert!(!merge.is_settled(), "in two messages");
    tell(&mut merge, 1, 2, vec![report(2, "a", "acked", 2)]);
    assert!(merge.is_settled());
}

#[test]
fn a_data_plane_that_has_acked_and_connects_anew_is_done() {
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "acked", 1), report(1, "b", "pending", 1)]);
    tell(&mut merge, 1, 1, vec![report(2, "a", "pending", 2)]);
    assert_eq!(state(&merge, 1), (1, 2, "timed out".to_owned()));
}

#[test]
fn a_refusal_ends_the_wait_and_is_told_in_the_clients_words() {
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "b", "refused", 1), report(2, "a", "acked", 1)]);
    let over = merge.progress(0, merge.is_settled());
    assert_eq!((over.state.as_str(), over.refused, over.acked), ("refused", 1, 1));
    assert_eq!(over.waiting_for[0].error, "no such filter");
}

#[test]
fn one_that_turns_out_not_to_be_concerned_is_not_counted() {
    let mut merge = of(&[1]);
    merge.on_reports(1, WaitReports { streams: vec![report(1, "a", "pending", 1)], ..Default::default() }, 0);
    assert!(!merge.is_settled());
    tell(&mut merge, 1, 1, vec![report(1, "a", "unconcerned", 1)]);
    assert_eq!(state(&merge, 1), (0, 0, "done".to_owned()));
}

#[test]
fn a_data_plane_whose_workload_is_gone_is_waited_for_no_longer() {
    let mut merge = of(&[1]);
    tell(&mut merge, 1, 0, vec![report(1, "a", "pending", 1), report(2, "b", "pending", 1)]);
    tell(&mut merge, 1, 1, vec![report(1, "a", "closed", 1)]);
    merge.forget(|_| false, |_| true);
    assert_eq!(merge.progress(1, false).concerned, 1, "b is connected");
    tell(&mut merge, 1, 2, vec![report(2, "b", "acked", 1)]);
    assert!(merge.is_settled());
}

/// The names of those that are waited for, with their states.
fn missing(progress: &WaitProgress) -> Vec<(&str, &str)> {
    progress.waiting_for.iter().map(|plane| (plane.id.as_str(), plane.state.as_str())).collect()
}

#[test]
fn a_replica_that_does_not_answer_keeps_the_wait_open_and_is_named_at_its_end() {
    let mut merge = of(&[1, 2, 3]);
    tell(&mut merge, 1, 0, vec![]);
    merge.on_lost(2, "connection refused".to_owned(), 100);
    assert_eq!(merge.progress(900, false).silent, [], "it may still come");
    assert!(!merge.is_settled());
    let waiting = merge.progress(1_000, false);
    assert_eq!(waiting.silent.iter().map(|silent| silent.id).collect::<Vec<_>>(), [2, 3]);
    let over = merge.progress(30_000, true);
    assert_eq!(over.state, "timed out");
    let told = |id: u64, error: &str| SilentReplica {
        id,
        address: format!("10.0.0.{id}:9443"),
        silent_ms: 30_000,
        error: error.to_owned(),
    };
    assert_eq!(
        over.silent,
        [told(2, "connection refused"), told(3, "")],
        "one is stopped, and just says nothing"
    );
    merge.on_begin(2, 30_000);
    tell(&mut merge, 2, 30_001, vec![]);
    tell(&mut merge, 3, 30_002, vec![]);
    assert!(merge.is_settled(), "they are back");
}

#[test]
fn a_replica_that_is_removed_from_the_cluster_is_waited_for_no_longer() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![]);
    assert!(merge.misses_somebody());
    merge.forget(|_| true, |id| id == 1);
    merge.on_lost(2, "it is draining".to_owned(), 5);
    tell(&mut merge, 2, 6, vec![report(1, "a", "pending", 1)]);
    assert_eq!((merge.is_settled(), state(&merge, 7)), (true, (0, 0, "done".to_owned())));
}

#[test]
fn what_a_replica_told_before_it_fell_silent_is_what_is_known() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![]);
    let streams =
        vec![report(1, "a", "pending", 1), report(2, "b", "acked", 1), report(3, "c", "refused", 1)];
    tell(&mut merge, 2, 0, streams);
    merge.on_lost(2, "gone".to_owned(), 10);
    let over = merge.progress(60_000, true);
    assert_eq!((over.state.as_str(), over.acked, over.refused), ("timed out", 1, 1));
    assert_eq!(missing(&over), [("c", "refused"), ("a", "pending")]);
    tell(&mut merge, 1, 20, vec![report(9, "a", "acked", 1), report(8, "c", "acked", 1)]);
    assert_eq!(
        missing(&merge.progress(60_000, true)),
        [],
        "a replica that answers knows better, whatever its clock"
    );
    assert!(!merge.is_settled(), "the other one may have taken in somebody else since");
    merge.on_begin(2, 30);
    tell(&mut merge, 2, 30, vec![]);
    assert_eq!(state(&merge, 30), (3, 3, "done".to_owned()));
}

#[test]
fn the_data_planes_of_a_replica_that_starts_anew_are_still_waited_for() {
    let mut merge = of(&[1, 2]);
    tell(&mut merge, 1, 0, vec![]);
    tell(&mut merge, 2, 0, vec![report(1, "a", "pending", 1)]);
    merge.on_lost(2, "gone".to_owned(), 10);
    merge.on_begin(2, 20);
    tell(&mut merge, 2, 30, vec![]);
    assert_eq!(missing(&merge.progress(40, true)), [("a", "disconnected")]);
    assert!(!merge.is_settled() && merge.misses_somebody());
    tell(&mut merge, 1, 50, vec![report(9, "a", "pending", 15), report(9, "a", "acked", 15)]);
    assert!(merge.is_settled());
}

#[test]
fn an_agent_that_is_connected_nowhere_is_waited_for_because_it_runs_on_what_it_had() {
    let mut merge = with_nodes(&[1, 2], &["n1", "n2", "n3"]);
    let here = |agents: &[&str], streams| WaitReports {
        complete: true,
        streams,
        agents: agents.iter().map(|node| (*node).to_owned()).collect(),
    };
    merge.on_reports(1, here(&["n1"], vec![]), 10);
    assert_eq!(missing(&merge.progress(20, false)), [], "the other replica may have them");
    merge.on_reports(2, here(&["n2"], vec![report(1, "agent~n2", "acked", 1)]), 30);
    let waiting = merge.progress(40, false);
    assert_eq!((missing(&waiting), waiting.concerned), (vec![("agent~n3", "disconnected")], 2));
    assert_eq!(waiting.waiting_for[0].error, "");
    assert!(!merge.is_settled());
    tell(&mut merge, 2, 50, vec![report(2, "agent~n3", "acked", 45)]);
    assert_eq!(state(&merge, 50), (2, 2, "done".to_owned()));

    let mut merge = with_nodes(&[1], &["n1", "n2"]);
    tell(&mut merge, 1, 0, vec![report(1, "agent~n1", "unconcerned", 1)]);
    assert_eq!(state(&merge, 0).2, "timed out");
    merge.forget(|id| id != "agent~n2", |_| true);
    assert_eq!(state(&merge, 0), (0, 0, "done".to_owned()), "its node was removed");
}

#[test]
fn an_agent_may_be_at_a_replica_that_is_silent_and_that_is_said() {
    let mut merge = with_nodes(&[1, 3], &["n2"]);
    tell(&mut merge, 1, 0, vec![]);
    let over = merge.progress(5_000, true);
    assert_eq!(missing(&over), [("agent~n2", "disconnected")]);
    assert!(over.waiting_for[0].error.contains("replica 3, which does not answer"), "{over:?}");
}
