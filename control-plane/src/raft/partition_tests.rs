//! Replicas in one process, with a network between them that can be cut.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt;
use hyper_util::rt::TokioIo;
use openraft::raft::{VoteRequest, VoteResponse};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::transport::Endpoint;
use xds_proto::isthmus::raft::v1::{Payload, raft_client::RaftClient};

use super::{
    DialError, Dialer, ReadError, Role, WriteError, salvage,
    testing::{Running, eventually, folders, has, put, three_with},
    types::Vote,
};

/// Who is cut off from the rest.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<BTreeSet<u64>>>);

impl Net {
    fn isolate(&self, id: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    fn heal(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn is_cut(&self, one: u64, other: u64) -> bool {
        let isolated = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        isolated.contains(&one) != isolated.contains(&other)
    }

    fn dialer(&self, own: u64) -> Dialer {
        let net = self.clone();
        Arc::new(move |id, address: String| {
            let net = net.clone();
            async move {
                let fail = |reason: String| DialError { id, address: address.clone(), reason };
                let endpoint = Endpoint::from_shared(format!("http://{address}"));
                let endpoint = endpoint.map_err(|error| fail(error.to_string()))?;
                let connector = tower::service_fn(move |_| {
                    let (net, address) = (net.clone(), address.clone());
                    async move {
                        if net.is_cut(own, id) {
                            return Err(io::Error::other("the network is cut"));
                        }
                        let stream = TcpStream::connect(address).await?;
                        Ok(TokioIo::new(Cable { stream, net, ends: (own, id) }))
                    }
                });
                Ok(endpoint.connect_with_connector_lazy(connector))
            }
            .boxed()
        })
    }
}

/// A connection that breaks when the network is cut.
struct Cable {
    stream: TcpStream,
    net: Net,
    ends: (u64, u64),
}

impl Cable {
    fn whole(&self) -> io::Result<()> {
        let cut = self.net.is_cut(self.ends.0, self.ends.1);
        if cut { Err(io::Error::other("the network is cut")) } else { Ok(()) }
    }
}

impl AsyncRead for Cable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Cable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.whole()?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn three_on(net: &Net, dirs: &[tempfile::TempDir; 3]) -> [Running; 3] {
    three_with(dirs, |_| {}, |id| net.dialer(id)).await
}

async fn stop(all: impl IntoIterator<Item = Running>) {
    for running in all {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_back_from_a_partition_disturbs_nobody_and_no_term_goes_up() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    let before = first.replica.metrics();
    assert_eq!(before.role, Role::Leader);
    net.isolate(3);
    eventually("the lost one knows it", async || third.replica.no_quorum().is_some()).await;
    let lost = third.replica.no_quorum().expect("just seen");
    assert_eq!((lost.reachable, lost.voters), (1, 3), "{lost}");
    // It asks again and again meanwhile; were it to stand each time, its term would be far ahead.
    let silent = Instant::now();
    eventually("several elections could have been", async || silent.elapsed() > Duration::from_secs(3)).await;
    assert_eq!(third.replica.metrics().term, before.term, "it has asked and not stood");
    first.replica.write(put("meanwhile")).await.expect("two are a majority");
    net.heal();
    third.until("it has caught up", |state| has(state, "meanwhile")).await;
    eventually("it has a quorum", async || third.replica.no_quorum().is_none()).await;
    for replica in [&first, &second, &third] {
        let view = replica.replica.metrics();
        assert_eq!((view.term, view.leader), (before.term, Some(1)));
    }
    stop([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_steps_down_says_so_and_refuses_at_once() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    net.isolate(1);
    eventually("it leads no more", async || {
        first.replica.no_quorum().is_some() && first.replica.metrics().role != Role::Leader
    })
    .await;
    let asked = Instant::now();
    let refused = first.replica.write(put("lonely")).await.expect_err("nobody confirms it");
    assert!(matches!(&refused, WriteError::NoQuorum(lost) if lost.reachable == 1), "{refused}");
    let refused = first.replica.linearizable().await.expect_err("nobody confirms it");
    assert!(matches!(refused, ReadError::NoQuorum(_)), "{refused}");
    println!("refused within {:?}: {refused}", asked.elapsed());
    assert_eq!(first.replica.metrics().leader, None);

    // A new leader that a busy machine holds up steps down once more, and says so meanwhile.
    eventually("the others elect a leader", async || second.replica.write(put("elsewhere")).await.is_ok())
        .await;
    let term = second.replica.metrics().term;
    net.heal();
    first.until("it follows", |state| has(state, "elsewhere") && !has(state, "lonely")).await;
    // It has the entry before it has looked again whether it hears a leader.
    eventually("it knows that there is a quorum again", async || first.replica.no_quorum().is_none()).await;
    first.replica.write(put("again")).await.expect("by way of the new leader");
    for replica in [&first, &second, &third] {
        assert_eq!(replica.replica.metrics().term, term, "its return has cost no election");
    }
    stop([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_is_refused_while_a_leader_is_heard_by_followers_and_by_the_leader_itself() {
    let (net, dirs) = (Net::default(), folders());
    let all = three_on(&net, &dirs).await;
    let term = all[0].replica.metrics().term;
    let ask = serde_json::to_vec(&VoteRequest::<u64> {
        vote: Vote::new(term + 9, 3),
        // As long a log as anybody's.
        last_log_id: Some(openraft::testing::log_id(u64::MAX, 3, u64::MAX)),
    })
    .expect("plain data");
    for voter in &all[..2] {
        let mut door = RaftClient::connect(format!("http://{}", voter.address)).await.expect("connected");
        let payload = Payload { json: ask.clone(), from: 3, ..Payload::default() };
        let answer = door.vote(payload).await.expect("answered").into_inner();
        let answer: Result<VoteResponse<u64>, openraft::error::RaftError<u64>> =
            serde_json::from_slice(&answer.json).expect("an answer");
        assert!(!answer.expect("no failure").vote_granted, "replica {}", voter.replica.id());
    }
    all[2].replica.write(put("after")).await.expect("the leader leads");
    assert_eq!(all[0].replica.metrics().term, term);
    stop(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_removed_while_it_is_away_learns_it_and_disturbs_nobody() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    let term = first.replica.metrics().term;
    net.isolate(3);
    // Nobody is removed while the rest would be no majority that answers.
    eventually("its silence is noticed", async || !first.replica.leaves_quorum(2)).await;
    assert!(first.replica.leaves_quorum(3));
    second.replica.remove_replica(3).await.expect("written");
    eventually("two are left", async || first.replica.metrics().members.len() == 2).await;
    net.heal();
    let reason = tokio::time::timeout(super::testing::PATIENCE, third.replica.removed());
    let reason = reason.await.expect("it asks, and is told");
    assert!(reason.contains("replica 3 was removed from the cluster"), "{reason}");
    first.replica.write(put("after")).await.expect("two of two");
    let view = second.replica.metrics();
    assert_eq!((view.term, view.leader), (term, Some(1)));
    stop([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    let removed = Instant::now();
    second.replica.remove_replica(1).await.expect("written");
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while second.replica.metrics().members.len() > 2 || count < 20 {
        let began = Instant::now();
        third.replica.write(put(&format!("w{count}"))).await.expect("writes go on");
        longest = longest.max(began.elapsed());
        count += 1;
        assert!(removed.elapsed() < super::testing::PATIENCE, "{:?}", second.replica.metrics());
    }
    println!("{count} writes meanwhile, the slowest took {longest:?}");
    let reason = tokio::time::timeout(super::testing::PATIENCE, first.replica.removed()).await;
    assert!(reason.expect("it is told").contains("replica 1"));
    let state = second.replica.linearizable().await.expect("a leader");
    assert!((0..count).all(|n| has(&state, &format!("w{n}"))));
    stop([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_stays_one_until_it_is_promoted_and_can_be_demoted_again() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    let voters = |running: &Running| -> BTreeSet<u64> {
        running
            .replica
            .metrics()
            .members
            .into_iter()
            .filter(|member| member.voter)
            .map(|member| member.id)
            .collect()
    };
    first.replica.set_role(3, true).await.expect("written");
    eventually("it votes no more", async || voters(&first) == BTreeSet::from([1, 2])).await;
    first.replica.write(put("learnt")).await.expect("two of two");
    third.until("it is given the log", |state| has(state, "learnt")).await;
    // Every replica knows who votes and who leads.
    eventually("all know it", async || {
        second.replica.metrics().members.iter().map(|member| member.role).collect::<Vec<_>>()
            == [Role::Leader, Role::Follower, Role::Learner]
    })
    .await;
    first.replica.set_role(3, false).await.expect("written");
    eventually("it votes again", async || voters(&first).len() == 3).await;
    stop([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_makes_a_new_group_that_the_others_of_old_can_not_come_back_to() {
    let (net, dirs) = (Net::default(), folders());
    let [first, second, third] = three_on(&net, &dirs).await;
    first.replica.write(put("kept")).await.expect("written");
    second.until("it has arrived", |state| has(state, "kept")).await;
    let revision = second.replica.applied().revision;
    let addresses = [first.address, second.address, third.address];
    let in_use = salvage::survey(dirs[1].path(), 2).await.expect_err("it runs");
    assert!(in_use.to_string().contains("another process uses it"), "{in_use}");
    stop([first, second, third]).await;

    let survivor = salvage::survey(dirs[1].path(), 2).await.expect("readable");
    assert_eq!(survivor.others.keys().copied().collect::<Vec<_>>(), [1, 3]);
    assert!(survivor.revision >= revision && survivor.last_log_index >= survivor.committed_index);
    assert!(matches!(
        salvage::survey(tempfile::tempdir().expect("a folder").path(), 2).await,
        Err(salvage::SalvageError::Empty)
    ));
    salvage::make_group(dirs[1].path(), 2).await.expect("made");
    let anew = |config: &mut super::RaftConfig| "new".clone_into(&mut config.group);
    let second = Running::start_with(2, dirs[1].path(), Some(addresses[1]), anew, net.dialer(2)).await;
    second.replica.write(put("anew")).await.expect("it is a majority by itself");
    let state = second.replica.linearizable().await.expect("it leads");
    assert!(has(&state, "kept") && state.revision > revision + 1_000_000);
    assert_eq!(state.replicas.keys().copied().collect::<Vec<_>>(), [2]);

    // The others of old come back: a majority of their own group, and nothing to the new one.
    let first = Running::start_with(1, dirs[0].path(), Some(addresses[0]), |_| {}, net.dialer(1)).await;
    let third = Running::start_with(3, dirs[2].path(), Some(addresses[2]), |_| {}, net.dialer(3)).await;
    first.replica.write(put("old")).await.expect("two of three");
    let term = second.replica.metrics().term;
    second.replica.write(put("more")).await.expect("undisturbed");
    let view = second.replica.metrics();
    assert_eq!((view.term, view.role, view.members.len()), (term, Role::Leader, 1));
    assert!(!has(&second.replica.applied(), "old") && !has(&third.replica.applied(), "more"));
    assert!(!first.replica.is_removed(), "being of another group is no removal");
    stop([first, second, third]).await;
}
