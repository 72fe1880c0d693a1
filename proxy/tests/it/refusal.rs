//! Resources that are refused.

use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::Cluster,
            listener::v3::Listener,
            route::v3::{RetryPolicy, RouteAction},
        },
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    },
};

use crate::{
    backend::Backend,
    client::get1,
    control::{Control, named},
    resources::*,
};

#[tokio::test]
async fn a_bad_resource_is_refused_with_its_path_and_the_old_one_goes_on() {
    let app = Backend::start("app").await;
    let mut control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/").await.status, 200);

    let bad = RouteAction {
        retry_policy: Some(RetryPolicy { retry_on: "5xx,sometimes".to_owned(), ..RetryPolicy::default() }),
        ..cluster_action("app")
    };
    control.set([named(routes("out", vec![(&["*"], vec![to(prefix("/"), bad)])]))]);
    let (_, words) = control.nack().await;
    let path = "virtual_hosts[0].routes[0].route.retry_policy.retry_on";
    assert_eq!(words, format!("resource \"out\": {path}: \"sometimes\" is not supported"));
    assert_eq!(get1(at, "/").await.status, 200);

    let mut manager: HttpConnectionManager = hcm(rds("out"));
    manager.tracing = Some(Default::default());
    let mut changed: Listener = listener("out", vec![chain(http_filter(&manager))]);
    changed.name = "out".to_owned();
    control.set([named(changed)]);
    let (type_url, words) = control.nack().await;
    assert_eq!(type_url, Listener::type_url());
    let path = "filter_chains[0].filters[0].typed_config.tracing";
    assert!(words.starts_with(&format!("resource \"out\": {path}: is not supported")), "{words}");

    let mut cluster = static_cluster("app", &[app.address]);
    cluster.lb_policy = 6;
    control.set([named(cluster)]);
    let (type_url, words) = control.nack().await;
    assert_eq!(type_url, Cluster::type_url());
    assert!(words.contains("lb_policy"), "{words}");
    let answer = get1(at, "/").await;
    assert_eq!(answer.status, 200, "everything is as it was");

    // What is right again is taken.
    control.set([named(plain_listener("out")), named(routes("out", vec![(&["other"], vec![])]))]);
    while get1(at, "/").await.status != 404 {}
}

#[tokio::test]
#[allow(deprecated)]
async fn an_update_with_one_bad_resource_changes_nothing_at_all() {
    let app = Backend::start("app").await;
    let mut control = Control::start().await;
    let mut bad = static_cluster("bad", &[app.address]);
    bad.track_timeout_budgets = true;
    let mut worse = static_cluster("worse", &[app.address]);
    worse.load_assignment = None;
    control.set([named(static_cluster("app", &[app.address])), named(bad), named(worse)]);
    let proxy = control.proxy().await;
    let (_, words) = control.nack().await;
    assert_eq!(
        words,
        "resource \"bad\": track_timeout_budgets: is not supported by this proxy; leave it unset; \
         resource \"worse\": load_assignment: must be set"
    );
    assert!(proxy.shared().clusters().is_empty());
}
