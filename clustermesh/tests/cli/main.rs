//! The binary against a small control plane on a unix socket: what is sent, what is printed, and how it exits.
//! (The true control plane is driven by the same binary in `control-plane/tests/cli` and in `integration/`.)
// Helpers of a test may unwrap like the test itself.
#![allow(clippy::unwrap_used)]

mod scripted;

use std::process::Stdio;

use clustermesh::token::{JoinToken, Purpose};
use scripted::{Cluster, SHOP, command, out, pay, sentence};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tonic::Status;
use xds_proto::isthmus::admin::v1::*;

#[tokio::test]
async fn an_unreachable_control_plane_is_code_69_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for line in ["status", "get svc", "token create --for peer", "observe"] {
        let output = command(line).env("CLUSTERMESH_SOCKET", &socket).output().await.unwrap();
        assert_eq!(output.status.code(), Some(69), "{line}");
        let sentence = sentence(&output);
        assert!(sentence.contains("none.sock") && sentence.contains("clustermesh init"), "{sentence}");
    }
}

#[tokio::test]
async fn objects_are_listed_in_every_format() {
    let cluster = Cluster::start();
    let table = cluster.run("get svc -n shop --no-headers").await;
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    assert!(out(&table).starts_with("pay    10.101.0.4   80/TCP"), "{}", out(&table));
    assert_eq!(cluster.asked(), ["list Service ns=shop name= l="]);
    assert_eq!(out(&cluster.run("get svc -A -o name").await), "service/pay\n");
    let json: Value = serde_json::from_str(&out(&cluster.run("get svc/pay -n shop -o json").await)).unwrap();
    assert_eq!(json, pay());
    let list: Value = serde_json::from_str(&out(&cluster.run("get svc -A -o json").await)).unwrap();
    assert_eq!(list["items"][0], pay());
    let yaml = out(&cluster.run("get svc pay -n shop -o yaml").await);
    assert!(yaml.contains("kind: Service\n") && yaml.contains("resourceVersion: \"7\""), "{yaml}");
    let described = out(&cluster.run("describe svc pay -n shop").await);
    assert!(described.contains("Revision:     7\n"), "{described}");
    let empty = cluster.run("get netpol").await;
    assert_eq!(empty.status.code(), Some(0));
    assert_eq!(sentence(&empty), "nothing found in namespace \"default\"");
}

#[tokio::test]
async fn what_is_not_there_is_code_3() {
    let cluster = Cluster::start();
    for line in ["get svc cards -n shop", "describe svc/cards -n shop", "delete svc cards -n shop"] {
        let output = cluster.run(line).await;
        assert_eq!(output.status.code(), Some(3), "{line}");
        assert!(sentence(&output).contains("service/cards not found"), "{line}");
    }
    let mixed = cluster.run("delete svc pay cards -n shop").await;
    assert_eq!((mixed.status.code(), out(&mixed)), (Some(3), "service/pay deleted\n".to_owned()));
    let ignored = cluster.run("delete svc pay cards -n shop --ignore-not-found").await;
    assert_eq!(ignored.status.code(), Some(0));
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_after_a_lost_leader_and_lists_again_after_compaction() {
    let cluster = Cluster::start();
    let output = cluster.run("get svc -n shop -w -l app=pay").await;
    let text = out(&output);
    // Heading, the list, a change, a removal, and what the second list brought back.
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.lines().nth(3).unwrap().ends_with("(deleted)"), "{text}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("trying again from revision 12"), "{said}");
    assert!(said.contains("what came after revision 12 is forgotten: listing again"), "{said}");
    assert_eq!(output.status.code(), Some(1), "the server refuses in the end: {said}");
    let list = "list Service ns=shop name= l=app=pay".to_owned();
    let watch = |from: u64| format!("watch from {from} l=app=pay");
    assert_eq!(cluster.asked(), [list.clone(), watch(7), watch(12), watch(12), list, watch(7)]);
    assert_eq!(cluster.run("get all -w").await.status.code(), Some(64));
}

#[tokio::test]
async fn files_folders_and_stdin_are_applied() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    cluster.script.wait.lock().unwrap().extend([
        WaitProgress { revision: 7, state: "waiting".into(), concerned: 2, acked: 1, ..Default::default() },
        WaitProgress { revision: 7, state: "done".into(), concerned: 2, acked: 2, ..Default::default() },
    ]);
    let output = cluster.run(&format!("apply -f {file} --wait --timeout 5s")).await;
    assert_eq!(out(&output), "service/pay created\nservice/web created\n");
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("acked 2/2\n"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let mut asked = cluster.asked();
    assert_eq!(asked.pop().unwrap(), "wait for 7 timeout=5000");
    let asked = asked.remove(0);
    assert!(asked.contains("\"namespace\":\"default\""), "{asked}");
    let mut child = command("apply -f - -n shop --dry-run")
        .env("CLUSTERMESH_SOCKET", cluster.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(SHOP.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(out(&output), "service/pay created (dry run)\nservice/web created (dry run)\n");
    let folder = cluster.folder.path().display().to_string();
    assert_eq!(cluster.run(&format!("apply -f {folder} -o name")).await.status.code(), Some(0));
}

#[tokio::test]
async fn bad_manifests_are_refused_before_anything_is_sent() {
    let cluster = Cluster::start();
    for (name, text, said) in [
        ("a.yaml", "kind: [", "a.yaml: line 1"),
        ("b.yaml", "apiVersion: v1\nkind: Service\nmetadata: {}\n", "b.yaml: metadata.name is missing"),
        ("c.yaml", "", "there is no object in"),
        ("d.json", "{\"kind\":", "no JSON"),
    ] {
        let file = cluster.file(name, text);
        let output = cluster.run(&format!("apply -f {file}")).await;
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(sentence(&output).contains(said), "{}", sentence(&output));
    }
    assert!(sentence(&cluster.run("apply -f /no/such.yaml").await).contains("/no/such.yaml"));
    assert!(cluster.asked().is_empty());
}

#[tokio::test]
async fn a_refused_object_is_named_by_file_and_document() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    let refusal = Status::invalid_argument("objects[1]: service/default/web: spec.prots: unknown field");
    *cluster.script.apply.lock().unwrap() = Some(Err(refusal));
    let output = cluster.run(&format!("apply -f {file}")).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        sentence(&output).ends_with("shop.yaml, document 2: service/default/web: spec.prots: unknown field"),
        "{}",
        sentence(&output)
    );
}

#[tokio::test]
async fn a_wait_that_is_not_met_is_code_4_a_refusal_6_and_a_lost_leader_69() {
    let cluster = Cluster::start();
    let file = cluster.file("shop.yaml", SHOP);
    for (state, code) in [("timed out", 4), ("refused", 6)] {
        let plane = WaitingFor {
            id: "agent~n1".into(),
            state: if code == 6 { "refused" } else { "pending" }.into(),
            error: "no such table".into(),
            ..Default::default()
        };
        let refused = u32::from(code == 6);
        let last = WaitProgress {
            revision: 8,
            state: state.into(),
            concerned: 1,
            refused,
            waiting_for: vec![plane],
            ..Default::default()
        };
        for line in
            [format!("apply -f {file} --wait --timeout 1s"), "delete svc pay -n shop --wait".to_owned()]
        {
            cluster.script.wait.lock().unwrap().push(last.clone());
            let output = cluster.run(&line).await;
            assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.lines().last().unwrap().contains("agent~n1"), "{said}");
            assert_eq!(said.contains("no such table"), code == 6, "{said}");
        }
    }
    *cluster.script.apply.lock().unwrap() = Some(Err(Status::unavailable("there is no leader")));
    let output = cluster.run(&format!("apply -f {file}")).await;
    assert_eq!(output.status.code(), Some(69));
    assert!(sentence(&output).contains("there is no leader"));
}

#[tokio::test]
async fn tokens_go_to_stdout_alone_and_bad_ones_are_refused_at_once() {
    let cluster = Cluster::start();
    let output = cluster.run("token create --for node --node west-n1 --ttl 10m").await;
    assert_eq!((out(&output), output.stderr.len()), ("isthmus1.secret\n".to_owned(), 0));
    assert_eq!(cluster.asked(), ["token node 600 west-n1"]);
    assert_eq!(cluster.run("token create --for peer --node x").await.status.code(), Some(64));

    let token = |purpose, expires_unix| {
        JoinToken {
            purpose,
            node: None,
            cluster: "east".into(),
            id: "t1".into(),
            secret: [1; 32],
            doors: vec!["192.0.2.1:9443".into()],
            root_sha256: [2; 32],
            expires_unix,
        }
        .encode()
        .unwrap()
    };
    for (text, said) in [
        ("nonsense".to_owned(), "no join token"),
        (token(Purpose::Node, u64::MAX), "for a node, not for a peer"),
        (token(Purpose::Peer, 1), "expired"),
        (token(Purpose::Peer, u64::MAX)[..60].to_owned(), "damaged"),
        // This one is sound: the control plane itself refuses it.
        (token(Purpose::Peer, u64::MAX), "used already"),
    ] {
        let output = cluster.run(&format!("join {text}")).await;
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(sentence(&output).contains(said), "{}", sentence(&output));
    }
}

#[tokio::test]
async fn flows_are_shown_with_their_policy() {
    let cluster = Cluster::start();
    let output = cluster.run("observe --last 5 --verdict dropped -n shop --workload web").await;
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("networkpolicy/shop/pay#ingress[0]"), "{}", out(&output));
    assert!(!out(&output).contains('\u{1b}'), "no colours into a pipe");
    assert!(sentence(&output).contains("3 flows were lost"));
    assert_eq!(cluster.asked(), ["observe last=5 follow=false DROPPED shop web"]);
    let json: Value = serde_json::from_str(&out(&cluster.run("observe -o json").await)).unwrap();
    assert_eq!(json["source"]["workload"], "shop/web");
}

#[tokio::test]
async fn status_and_completions_print_and_exit_with_0() {
    let cluster = Cluster::start();
    assert!(out(&cluster.run("status").await).starts_with("CLUSTER   TRUST-DOMAIN"));
    let json: Value = serde_json::from_str(&out(&cluster.run("status -o json").await)).unwrap();
    assert_eq!(json["cluster"], "west");
    for shell in ["bash", "zsh", "fish"] {
        let output = command(&format!("completions {shell}")).output().await.unwrap();
        assert!(output.status.success() && out(&output).contains("clustermesh"), "{shell}");
    }
}

#[tokio::test]
async fn usage_errors_are_code_2() {
    for line in ["", "frobnicate", "get", "get deploy", "get svc pay -A -n x", "delete svc", "apply"] {
        let output = command(line).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{line}: {output:?}");
    }
}

#[tokio::test]
async fn init_reports_a_control_plane_that_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("control-plane");
    std::fs::write(&program, "#!/bin/sh\necho 'error: the address is in use' >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let line = format!(
        "init --name west --data-dir {} --socket {} --control-plane {}",
        path("data"),
        path("run/admin.sock"),
        program.display()
    );
    let output = command(&line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(sentence(&output).contains("the address is in use"), "{}", sentence(&output));
    std::fs::write(folder.path().join("data/somebody-elses"), "").unwrap();
    let output = command(&line).output().await.unwrap();
    assert!(sentence(&output).contains("is not empty"), "{}", sentence(&output));
}

#[tokio::test]
async fn init_starts_a_control_plane_and_says_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("control-plane");
    // Says that it is ready, as the true one does, and ends when told to.
    let script = "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --ready-file ] && ready=$2; shift; done\n: > \"$ready\"\nexec sleep 5\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let line = format!(
        "init --name west --data-dir {} --socket {} --control-plane {}",
        path("data"),
        path("admin.sock"),
        program.display()
    );
    let output = command(&line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = out(&output);
    assert!(text.starts_with("west is up (trust domain west.mesh.local, process "), "{text}");
    assert!(text.contains("token create --for peer"), "{text}");
}
