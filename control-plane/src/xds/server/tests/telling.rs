//! Streams that sleep until they are told, with the views stopped between what they store and what they tell of. That no
//! order of steps loses a revision is shown beside the views themselves.

use super::*;

/// A server whose streams sleep.
async fn sleeping(resources: &[(&str, &str, &str)]) -> Running {
    let running = Running::start(TestViews::new(1, resources)).await;
    running.views.told.set(running.server.subscribers().clone()).unwrap();
    running.server.subscribers().reached(1);
    running
}

#[tokio::test]
async fn a_sleeping_stream_is_served_once_it_is_told_and_one_that_opens_before_that_at_once() {
    let running = sleeping(&[(EDS, "e", "1")]).await;
    let mut asleep = running.subscribe("asleep", vec![Subscription::only(EDS, ["e"])], always);
    assert_eq!(asleep.next().await, "+e=1");
    assert_eq!(running.acked(1).await, []);
    running.views.store(2, &[(EDS, "e", "2")]);
    let mut late = running.subscribe("late", vec![Subscription::only(EDS, ["e"])], always);
    assert_eq!(late.next().await, "+e=2", "what there is, though nobody was told of it");
    running.until(|list| list.len() == 2 && list[1].acked_revision == 2).await;
    assert!(asleep.updates.try_recv().is_err());
    running.views.tell(2);
    assert_eq!(asleep.next().await, "+e=2");
    assert_eq!(running.acked(2).await, []);
    running.views.publish(3, &[(EDS, "e", "3")]);
    assert_eq!((asleep.next().await, late.next().await), ("+e=3".to_owned(), "+e=3".to_owned()));
    assert!(late.updates.try_recv().is_err(), "it was not sent again what it had");
}

#[tokio::test]
async fn a_stream_that_ends_between_what_is_stored_and_what_is_told_leaves_the_others_to_be_told() {
    let running = sleeping(&[(EDS, "e", "1")]).await;
    let mut stays = running.subscribe("stays", vec![Subscription::only(EDS, ["e"])], always);
    let mut leaves = running.subscribe("leaves", vec![Subscription::only(EDS, ["e"])], always);
    assert_eq!((stays.next().await, leaves.next().await), ("+e=1".to_owned(), "+e=1".to_owned()));
    running.views.store(2, &[(EDS, "e", "2")]);
    drop(leaves);
    running.until(|list| list.len() == 1).await;
    running.views.tell(2);
    assert_eq!(stays.next().await, "+e=2");
    assert_eq!(running.acked(2).await, []);
}

#[tokio::test]
async fn many_streams_that_open_while_revisions_come_all_end_up_with_the_newest() {
    const STREAMS: u64 = 12;
    let running = sleeping(&[(EDS, "e", "1")]).await;
    let mut all = Vec::new();
    for number in 0..STREAMS {
        all.push(running.subscribe(&format!("n{number}"), vec![Subscription::only(EDS, ["e"])], always));
        let revision = number + 2;
        running.views.store(revision, &[(EDS, "e", &revision.to_string())]);
        tokio::task::yield_now().await;
        running.views.tell(revision);
    }
    let newest = format!("+e={}", STREAMS + 1);
    for follower in &mut all {
        while follower.next().await != newest {}
    }
    running.until(|list| list.len() as u64 == STREAMS).await;
    assert_eq!(running.acked(STREAMS + 1).await, []);
}
