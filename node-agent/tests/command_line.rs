//! What the binary refuses before it does anything.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn metrics_are_not_served_to_a_network_unless_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let run = |metrics: &str| {
        Command::new(env!("CARGO_BIN_EXE_node-agent"))
            .args([
                "run",
                "--node",
                "n1",
                "--address",
                "192.0.2.1",
                "--cgroup",
                "/c",
                "--bpffs",
                "/b",
                "--state-dir",
            ])
            .arg(&state)
            .args(["--metrics", metrics])
            .output()
            .unwrap()
    };
    for metrics in ["0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464"] {
        let refused = run(metrics);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{said}");
        assert!(said.contains(metrics) && said.contains("--metrics-plain"), "{said}");
    }
    assert!(!state.exists(), "nothing was begun");
}
