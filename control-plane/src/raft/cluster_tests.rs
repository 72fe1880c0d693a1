//! Three replicas in one process.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all};
use mesh_store::{Bytes16, ObjectChange, Refusal};
use openraft::{ChangeMembers, ServerState};
use tonic::{Code, Status, transport::Server};
use xds_proto::isthmus::raft::v1::{Payload, raft_client::RaftClient};

use super::{
    Role, Timings, WriteError,
    testing::{PATIENCE, Running, eventually, folders, has, init, put, put_services, three},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_writes_reads_and_finds_it_all_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = Running::start(1, dir.path(), None, |_| {}).await;
    assert!(!running.replica.is_member().await);
    running.replica.initialize().await.expect("the first member");
    running.replica.initialize().await.expect("twice is once");
    assert!(matches!(
        running.replica.write(put("early")).await,
        Err(WriteError::Refused(Refusal::NotInitialised))
    ));
    running.replica.write(init()).await.expect("initialised");
    let applied = running.replica.write(put("one")).await.expect("written");
    assert_eq!((applied.revision, applied.outcomes[0].change), (2, ObjectChange::Created));
    let before = running.replica.linearizable().await.expect("a leader");
    running.stop().await;

    let again = Running::start(1, dir.path(), None, |_| {}).await;
    assert!(again.replica.is_member().await);
    let after = again.replica.linearizable().await.expect("it leads at once");
    assert_eq!(after, before);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_share_entries_and_each_gets_its_own_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = Running::start(1, dir.path(), None, |_| {}).await;
    running.replica.initialize().await.expect("the first member");
    running.replica.write(init()).await.expect("initialised");
    let before = running.replica.metrics().counters;
    let names: Vec<String> = (0..400).map(|n| format!("w{n}")).collect();
    let writes = names.iter().map(|name| running.replica.write(put(name)));
    let mut revisions: Vec<u64> =
        join_all(writes).await.into_iter().map(|applied| applied.expect("written").revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..402).collect::<Vec<u64>>(), "each write has a revision of its own");
    let after = running.replica.metrics().counters;
    let (commands, syncs) =
        (after.commands_proposed - before.commands_proposed, after.waited_syncs - before.waited_syncs);
    let (entries, groups) =
        (after.entries_proposed - before.entries_proposed, after.groups_synced - before.groups_synced);
    assert_eq!(commands, 400);
    assert!(entries < 100 && groups < 200, "{entries} entries, {groups} groups for 400 writes");
    assert!(syncs <= groups + 2, "{syncs} syncs for {groups} groups: one each");
    let events = running.replica.events_after(1).expect("all are kept");
    assert_eq!(events.len(), 400);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_linearizable_reads_share_rounds_and_see_what_was_written_before() {
    let dirs = folders();
    let all = three(&dirs, |_| {}).await;
    all[0].replica.write(put("before")).await.expect("written");
    let before = all[0].replica.metrics().counters.read_rounds;
    let readers = all.iter().flat_map(|running| (0..100).map(|_| running.replica.linearizable()));
    for state in join_all(readers).await {
        assert!(has(&state.expect("a leader"), "before"));
    }
    let rounds = all[0].replica.metrics().counters.read_rounds - before;
    assert!(rounds < 60, "{rounds} rounds for 300 reads");
    for running in all {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_takes_writes_and_linearizable_reads() {
    let dirs = folders();
    let all = three(&dirs, |_| {}).await;
    for (n, writer) in all.iter().enumerate() {
        let name = format!("from-{n}");
        writer.replica.write(put(&name)).await.expect("written");
        for reader in &all {
            let state = reader.replica.linearizable().await.expect("a leader");
            assert!(has(&state, &name), "{name} is not at replica {}", reader.replica.id());
        }
    }
    let (key, begun) = (Bytes16([7; 16]), std::time::SystemTime::now());
    let first = all[1].replica.write_once(key, None, put("once")).await.expect("written");
    let again = all[2].replica.write_once(key, Some(begun), put("once")).await.expect("the same answer");
    assert!(!first.replayed && again.replayed);
    assert_eq!((again.revision, again.outcomes), (first.revision, first.outcomes));
    let refused = all[2].replica.write(init_other()).await;
    assert!(matches!(refused, Err(WriteError::Refused(Refusal::AlreadyInitialised { .. }))), "{refused:?}");
    for running in all {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_apply_reaches_every_replica_and_the_leader_stays() {
    let dirs = folders();
    let all = three(&dirs, |config| config.timings = Timings::default()).await;
    let term = all[0].replica.metrics().term;
    let started = std::time::Instant::now();
    all[1].replica.write(put_services(5_000)).await.expect("it is below every limit");
    tracing::info!(elapsed = ?started.elapsed(), "written");
    for running in &all {
        running
            .until("all services", |state| state.allocations.len() == 5_000 && has(state, "service-4999"))
            .await;
    }
    tracing::info!(elapsed = ?started.elapsed(), "everywhere");
    all[2].replica.write(put("after")).await.expect("the group goes on");
    let view = all[0].replica.metrics();
    assert_eq!((view.role, view.term), (Role::Leader, term), "nobody else had to be elected");
    for running in all {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_group_that_was_given_up_half_way_is_finished_whoever_leads_then() {
    let dirs = folders();
    let all = three(&dirs, |_| {}).await;
    // The leader would stay in the one case; in the other it is not among the voters to come, so that another one must
    // lead first.
    for gone in [3, 1] {
        // A change is refused while the one before it is not applied, which the leader knows first.
        let ready = |running: &&Running| {
            let metrics = running.replica.raft().metrics();
            let metrics = metrics.borrow();
            metrics.state == ServerState::Leader
                && metrics.last_applied >= *metrics.membership_config.log_id()
        };
        eventually("one leads", async || all.iter().any(|running| ready(&running))).await;
        let raft = all.iter().find(ready).expect("nobody else stands").replica.raft();
        let before = raft.metrics().borrow().membership_config.log_id().to_owned();
        // One poll is the first half: two sets of voters. Whoever drops it asks for no second one.
        let change = raft.change_membership(ChangeMembers::RemoveVoters([gone].into()), true);
        assert!(change.now_or_never().is_none(), "it takes the others");
        // The records want all three to vote: after the second half, it is made a voter again.
        for running in &all {
            let mut metrics = running.replica.raft().metrics();
            let whole = metrics.wait_for(|metrics| {
                let config = &metrics.membership_config;
                config.log_id() > &before && config.membership().get_joint_config() == &vec![[1, 2, 3].into()]
            });
            let whole = tokio::time::timeout(PATIENCE, whole).await;
            assert!(whole.is_ok(), "replica {gone} was to go: {:?}", running.replica.metrics());
        }
        all[1].replica.write(put(&format!("after-{gone}"))).await.expect("the group goes on");
    }
    for running in all {
        running.stop().await;
    }
}

fn init_other() -> mesh_store::Command {
    match init() {
        mesh_store::Command::Init(info) => {
            mesh_store::Command::Init(mesh_model::records::ClusterInfo { name: "east".to_owned(), ..info })
        }
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_goes_is_replaced_and_nothing_is_lost() {
    let dirs = folders();
    let [first, second, third] = three(&dirs, |_| {}).await;
    assert_eq!(first.replica.metrics().role, Role::Leader);
    for n in 0..20 {
        second.replica.write(put(&format!("before-{n}"))).await.expect("written");
    }
    let address = first.address;
    first.stop().await;
    // Waits for the new leader by itself.
    third.replica.write(put("after")).await.expect("the others are a majority");
    for survivor in [&second, &third] {
        let state = survivor.replica.linearizable().await.expect("a leader");
        assert!((0..20).all(|n| has(&state, &format!("before-{n}"))) && has(&state, "after"));
    }
    let leader = if second.replica.is_leader() { &second } else { &third };
    eventually("the lost one shows", async || {
        leader
            .replica
            .metrics()
            .members
            .iter()
            .any(|member| member.id == 1 && member.reachable == Some(false))
    })
    .await;

    let back = Running::start(1, dirs[0].path(), Some(address), |_| {}).await;
    back.until("the returned replica has caught up", |state| has(state, "after")).await;
    let state = back.replica.linearizable().await.expect("a leader");
    assert!(has(&state, "after"));
    for running in [back, second, third] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_acknowledged_and_all_restart_with_what_was() {
    let dirs = folders();
    let [first, second, third] = three(&dirs, |_| {}).await;
    first.replica.write(put("kept")).await.expect("written");
    let (two, three_) = (second.address, third.address);
    second.stop().await;
    third.stop().await;
    let lonely = tokio::time::timeout(Duration::from_secs(2), first.replica.write(put("lonely"))).await;
    assert!(!matches!(lonely, Ok(Ok(_))), "one of three has acknowledged a write");
    assert!(!matches!(
        tokio::time::timeout(Duration::from_secs(1), first.replica.linearizable()).await,
        Ok(Ok(_))
    ));
    let second = Running::start(2, dirs[1].path(), Some(two), |_| {}).await;
    let third = Running::start(3, dirs[2].path(), Some(three_), |_| {}).await;
    third.replica.write(put("again")).await.expect("a majority is back");
    let state = second.replica.linearizable().await.expect("a leader");
    assert!(has(&state, "kept") && has(&state, "again"));
    for running in [first, second, third] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_too_far_catches_up_by_snapshot() {
    let dirs = folders();
    let small = |config: &mut super::RaftConfig| {
        config.snapshot_after = 20;
        config.keep_entries = 5;
    };
    let [first, second, third] = three(&dirs, small).await;
    let address = third.address;
    third.stop().await;
    for n in 0..80 {
        first.replica.write(put(&format!("w{n}"))).await.expect("two are a majority");
    }
    eventually("the log is purged", async || first.replica.metrics().snapshot_index > Some(60)).await;
    let third = Running::start(3, dirs[2].path(), Some(address), small).await;
    third.until("the last write has arrived", |state| has(state, "w79")).await;
    assert_eq!(
        third.replica.linearizable().await.expect("a leader"),
        first.replica.linearizable().await.expect("a leader")
    );
    assert!(third.replica.events_after(1).is_err(), "what the snapshot skipped is compacted");

    // What came by snapshot survives a restart.
    third.stop().await;
    let third = Running::start(3, dirs[2].path(), Some(address), small).await;
    assert!(has(&third.replica.applied(), "w40"));
    for running in [first, second, third] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_leaves_the_group() {
    let dirs = folders();
    let [first, second, third] = three(&dirs, |_| {}).await;
    second.replica.remove_replica(3).await.expect("written");
    eventually("two members are left", async || first.replica.metrics().members.len() == 2).await;
    third.stop().await;
    first.replica.write(put("after")).await.expect("two of two");
    assert!(has(&second.replica.linearizable().await.expect("a leader"), "after"));
    for running in [first, second] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_replica_and_what_is_no_message_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let running = Running::start(1, dir.path(), None, |_| {}).await;
    running.replica.initialize().await.expect("the first member");
    running.replica.write(init()).await.expect("initialised");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let strict = running.replica.service(Arc::new(|_| Err(Status::permission_denied("replicas only"))));
    let server = tokio::spawn(
        Server::builder()
            .add_service(strict)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let mut stranger = RaftClient::connect(format!("http://{address}")).await.expect("connected");
    for code in [
        stranger.vote(Payload::default()).await.expect_err("refused").code(),
        stranger.append_entries(Payload::default()).await.expect_err("refused").code(),
        stranger.install_snapshot(Payload::default()).await.expect_err("refused").code(),
        stranger.forward(Payload::default()).await.expect_err("refused").code(),
        stranger.read_index(Payload::default()).await.expect_err("refused").code(),
    ] {
        assert_eq!(code, Code::PermissionDenied);
    }
    let mut replica = RaftClient::connect(format!("http://{}", running.address)).await.expect("connected");
    for json in [&b""[..], b"{}", b"[]", b"\xff", br#"{"envelopes":[{}],"patience_ms":1}"#] {
        let payload = || Payload { json: json.to_vec(), ..Payload::default() };
        for code in [
            replica.vote(payload()).await.expect_err("refused").code(),
            replica.append_entries(payload()).await.expect_err("refused").code(),
            replica.install_snapshot(payload()).await.expect_err("refused").code(),
            replica.forward(payload()).await.expect_err("refused").code(),
        ] {
            assert_eq!(code, Code::InvalidArgument);
        }
    }
    let huge = put(&"n".repeat(9 * 1024 * 1024));
    assert!(matches!(running.replica.write(huge).await, Err(WriteError::TooLarge { .. })));
    running.replica.write(put("fine")).await.expect("it goes on");
    server.abort();
    running.stop().await;
}
