//! How streams end that may not go on, and that others do not notice.

use super::*;

#[tokio::test]
async fn who_may_not_have_anything_is_told_so_and_not_listed() {
    let running = Running::start(TestViews::new(1, &[])).await;
    let status =
        end_of(&running, |request| request.node = Some(Node { id: "intruder".into(), ..Default::default() }))
            .await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "intruders may have nothing"));
    assert_eq!(running.server.subscribers().list(), []);
}

#[tokio::test]
async fn a_client_that_loses_its_right_loses_its_stream_at_that_revision() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    let mut follower = running.subscribe("leaver", vec![Subscription::only(EDS, ["e"])], always);
    assert_eq!(follower.next().await, "+e=1");
    running.views.publish(2, &[(EDS, "e", "secret")]);
    running.until(|list| list.is_empty()).await;
    assert!(follower.updates.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_beyond_its_limits_ends_with_a_sentence() {
    let views = TestViews::new(1, &[]);
    let running = Running::with(views, |options| options.limits.names = 1).await;
    let status = end_of(&running, |request| request.resource_names = vec!["a".into(), "b".into()]).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "subscribed to more than 1 names on one stream");
    let status = end_of(&running, |request| request.type_url.clear()).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "type_url is empty"));
}

#[tokio::test]
async fn an_oversized_request_ends_its_own_stream_only() {
    let views = TestViews::new(1, &[(EDS, "e", "1")]);
    let running = Running::with(views, |options| options.request_bytes = 1 << 10).await;
    let mut follower = running.subscribe("n1", vec![Subscription::only(EDS, ["e"])], always);
    follower.next().await;
    let status = end_of(&running, |request| request.resource_names = vec!["x".repeat(2 << 10)]).await;
    assert_eq!(status.code(), Code::OutOfRange);
    running.views.publish(2, &[(EDS, "e", "2")]);
    assert_eq!(follower.next().await, "+e=2");
}

#[tokio::test]
async fn a_silent_stream_is_closed() {
    let running =
        Running::with(TestViews::new(1, &[]), |o| o.first_request = Duration::from_millis(10)).await;
    let (_requests, receiver) = mpsc::channel::<DiscoveryRequest>(1);
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn draining_sends_clients_elsewhere() {
    let running = Running::start(TestViews::new(1, &[])).await;
    running.server.drain();
    assert_eq!(end_of(&running, |_| {}).await.code(), Code::Unavailable);
}

#[tokio::test]
async fn who_comes_to_a_server_that_drains_is_not_served_once_more() {
    let running = Running::start(TestViews::new(1, &[(CDS, "a", "1")])).await;
    running.server.drain();
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    // Which of two ready things comes first would be a matter of luck.
    for _ in 0..20 {
        let (requests, receiver) = mpsc::channel(1);
        requests.send(DiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
        let opened = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await;
        let first = match opened {
            Ok(responses) => responses.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(first.expect_err("it is sent away").code(), Code::Unavailable);
    }
}
