//! A little of `make bench-datapath`: that every area runs whole and says what it should, whatever the times. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::{fs, process::Command};

use bench::report::Row;

/// Measures one area by its program, and reads the result.
fn measured(area: &str) -> Vec<Row> {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
        return Vec::new();
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench-datapath"))
        .args(["--tiny", "--folder"])
        .arg(folder.path())
        .arg(area)
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("goals met"), "{said}");
    let rows: Vec<Row> =
        serde_json::from_slice(&fs::read(folder.path().join("datapath.json")).unwrap()).unwrap();
    for row in &rows {
        assert!(row.ours.is_finite(), "{row:?}");
        assert_eq!(row.goal.is_some(), row.met.is_some(), "{row:?}");
        assert_eq!(row.baseline.is_some(), row.ratio.is_some(), "{row:?}");
    }
    rows
}

/// Every row that the area is to have, by a part of its name and its baseline, and how many goals it has.
fn expect(area: &str, names: &[(&str, Option<&str>)], goals: usize) {
    let rows = measured(area);
    if rows.is_empty() {
        return;
    }
    for (name, baseline) in names {
        let is_it = |row: &Row| {
            row.name.contains(name)
                && match (row.baseline_name.as_deref(), baseline) {
                    // Of the one kind or the other.
                    (Some(found), Some(baseline)) => found.starts_with(baseline),
                    (found, baseline) => found.is_none() && baseline.is_none(),
                }
        };
        assert!(rows.iter().any(is_it), "no {name:?} beside {baseline:?} in {rows:#?}");
    }
    assert_eq!(rows.iter().filter(|row| row.goal.is_some()).count(), goals, "{rows:#?}");
}

#[test]
fn the_programs_are_timed_hot_spread_and_cold_as_identities_and_services_grow() {
    let rows = [
        ("A/A hot from_pod", Some("itself")),
        ("policy, from a pod, hot, 10", None),
        ("policy, to a pod, hot, 10, against 3", Some("3")),
        ("service, from a pod, cold, 10", None),
        ("service and policy, from a pod, hot, 10", None),
        ("policy, from a pod, new flow, 3", None),
        ("policy, to a pod, spread, 10", None),
    ];
    expect("packets", &rows, 12);
}

#[test]
fn packets_are_sent_beside_nftables_and_beside_nothing() {
    let rows = [
        ("datagram, pod to pod, 10 identities", Some("nftables")),
        ("datagram, pod to pod, 3 identities, beside none", Some("plain")),
        ("added to a datagram by policy, 10 identities", Some("nftables")),
    ];
    expect("forward", &rows, 0);
}

#[test]
fn services_are_connected_to_beside_what_kube_proxy_writes() {
    let rows = [
        ("connect to a service by sockets, of 5", Some("iptables")),
        ("connect to a service by packets, of 5", Some("nftables maps")),
        ("connects by packets, of 5", Some("iptables")),
        ("stream to a service by sockets, of 5", Some("nftables maps")),
    ];
    expect("services", &rows, 2);
}

#[test]
fn the_hooks_at_sockets_are_timed_and_translate_no_packet() {
    let rows = [
        ("added to the connect of a datagram socket to a service", None),
        ("round trip on a connection to a service", Some("to the pod")),
        ("packets' translations", None),
    ];
    expect("sockets", &rows, 4);
}

#[test]
fn streams_and_round_trips_go_on_one_node_and_across() {
    let rows = [("stream on one node", Some("plain")), ("round trip across nodes", Some("plain"))];
    expect("streams", &rows, 0);
}

#[test]
fn a_changed_policy_is_timed_until_a_packet_is_judged_by_it() {
    let rows = [
        ("revision to the first packet that is let in, 20 rules, p99", None),
        ("revision to the last packet that is let in, 20 rules, p99", None),
        ("message to the last write", None),
    ];
    expect("policy", &rows, 3);
}

#[test]
fn pods_are_made_one_at_a_time_and_sixteen_at_once() {
    let rows = [("CNI ADD, one at a time, p99", None), ("CNI ADD, 16 at once, p99", None)];
    expect("cni", &rows, 2);
}

#[test]
fn an_agent_with_many_endpoints_is_weighed() {
    let rows = [("with 500 endpoints, resident", None), ("idle", None)];
    expect("memory", &rows, 2);
}
