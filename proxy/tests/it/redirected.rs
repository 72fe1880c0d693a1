//! Connections that the kernel redirected to the proxy, in a network namespace of the test's own.

use std::{future::Future, net::SocketAddr, process::Command};

use nix::sched::{CloneFlags, unshare};
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
            },
            listener::v3::{ListenerFilter, listener_filter},
        },
        extensions::filters::listener::{original_dst::v3::OriginalDst, original_src::v3::OriginalSrc},
    },
    google::protobuf::BoolValue,
    to_any,
};

use crate::{
    backend::Backend,
    client::{get1, raw},
    control::{Control, named},
    resources::*,
};

/// Runs `work` where the loopback's 10.0.0.0/24 is this machine's, and what is sent to its port 80 and 81 is redirected to
/// 127.0.0.1:15001, whoever sends it; but for what bears the mark 7.
fn apart<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let thread = std::thread::spawn(move || {
        // Threads that it starts are there too; others are not.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let run = |words: &[&str]| {
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["ip", "address", "add", "10.0.0.1/24", "dev", "lo"]);
        run(&[
            "nft",
            "add table ip t; add chain ip t out { type nat hook output priority -100; }; \
            add rule ip t out meta mark != 7 ip daddr 10.0.0.0/24 tcp dport {80, 81} redirect to :15001",
        ]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work());
    });
    thread.join().unwrap();
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_connection_goes_to_the_listener_of_whom_it_was_for() {
    apart(async || {
        let [first, port, rest] =
            [Backend::start("first").await, Backend::start("port").await, Backend::start("rest").await];
        let control = Control::start().await;
        let serving = |name: &str, address: &str, app: &str| {
            let mut listener = listener(name, vec![chain(http_filter(&hcm(inline(all_to(app, app)))))]);
            listener.address = self::address(at(address));
            listener
        };
        let mut catching = serving("catching", "127.0.0.1:15001", "rest");
        catching.use_original_dst = Some(BoolValue { value: true });
        let unbound = |name, address, app| {
            let mut listener = serving(name, address, app);
            listener.bind_to_port = Some(BoolValue { value: false });
            listener
        };
        control.set([
            named(catching),
            named(unbound("first", "10.0.0.1:80", "first")),
            named(unbound("port", "0.0.0.0:81", "port")),
            named(static_cluster("first", &[first.address])),
            named(static_cluster("port", &[port.address])),
            named(static_cluster("rest", &[rest.address])),
        ]);
        let proxy = control.proxy().await;
        proxy.listener("catching").await.unwrap();
        for (to, app) in [
            ("10.0.0.1:80", "first"),
            ("10.0.0.2:80", "rest"),
            ("10.0.0.2:81", "port"),
            ("127.0.0.1:15001", "rest"),
        ] {
            assert_eq!(get1(at(to), "/").await.backend(), app, "{to}");
        }
        // A listener without sockets that is gone takes nothing with it but its own.
        control.remove::<xds_proto::envoy::config::listener::v3::Listener>("first");
        tokio::time::timeout(std::time::Duration::from_secs(20), async {
            while get1(at("10.0.0.1:80"), "/").await.backend() != "rest" {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    });
}

#[test]
fn whom_a_connection_was_for_is_asked_and_nobody_asks_for_the_proxy_itself() {
    apart(async || {
        let app = Backend::on(at("10.0.0.3:80"), "asked").await;
        let control = Control::start().await;
        // What bears the mark does not come back to the proxy.
        let filters = [to_any(&OriginalDst {}), to_any(&OriginalSrc { mark: 7, ..Default::default() })];
        let filters = filters.map(|any| ListenerFilter {
            name: any.type_url.clone(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(any)),
            ..ListenerFilter::default()
        });
        let mut catching = listener("in", vec![chain(http_filter(&hcm(inline(all_to("r", "asked-for")))))]);
        catching.address = address(at("127.0.0.1:15001"));
        catching.listener_filters = filters.to_vec();
        let original = Cluster {
            name: "asked-for".to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
            lb_policy: LbPolicy::ClusterProvided as i32,
            ..Cluster::default()
        };
        control.set([named(catching), named(original)]);
        let proxy = control.proxy().await;
        proxy.listener("in").await.unwrap();
        assert_eq!(get1(at("10.0.0.3:80"), "/").await.backend(), "asked");
        assert_eq!(get1(at("10.0.0.4:80"), "/").await.status, 503, "nobody is there");
        assert_eq!(app.requests(), 1);
        // The listener itself is nobody to ask.
        let refused =
            raw(at("127.0.0.1:15001"), b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    });
}
