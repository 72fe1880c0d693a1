//! One machine after the other: `replica list|add|promote|remove`, `--join-file`, and a lost quorum.

use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

use crate::process::{Replica, Typed, WEST, until, voters, well};

fn column(typed: &Typed, name: &str) -> Vec<String> {
    typed.rows("ID ").iter().map(|row| row[name].clone()).collect()
}

/// A machine with a token in a file, as docs/operations.md says.
async fn join_by_file(home: &Replica, add: &str) -> Replica {
    let token = home.types(add).await.ends(0);
    assert_eq!((token.out.lines().count(), token.err.as_str()), (1, ""), "for a file: {token:?}");
    let mut machine = Replica::new();
    let file = machine.path("join-token");
    std::fs::write(&file, &token.out).unwrap();
    machine.start(&["--join-file", file.to_str().unwrap()], None);
    machine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_join_by_a_token_file_and_are_listed_promoted_and_removed() {
    let first = Replica::first_start(&WEST, None);
    let home = first.socket();
    until(&home, "the first leads", |status| status.leader == 1).await;
    let alone = first.types("replica list").await.ends(0);
    assert_eq!(column(&alone, "ROLE"), ["leader"]);
    assert_eq!(column(&alone, "ADDRESS"), [first.address()]);

    let mut second = join_by_file(&first, "replica add").await;
    until(&home, "two voters", |status| well(status, 2)).await;
    let third = join_by_file(&first, "replica add --learner --ttl 5m").await;
    until(&home, "a learner that has caught up", |status| {
        well(status, 2) && status.replicas.len() == 3 && status.replicas[2].lag == 0
    })
    .await;
    let listed = second.types("replica list").await.ends(0);
    assert_eq!(column(&listed, "ID"), ["1", "2", "3"]);
    assert_eq!(column(&listed, "ROLE"), ["leader", "follower", "learner"]);
    assert_eq!(column(&listed, "STATE"), ["reachable"; 3]);
    let promoted = second.types("replica promote 3").await.ends(0);
    assert_eq!(promoted.out, "replica/3 promoted\n");
    until(&third.socket(), "three voters", |status| well(status, 3)).await;
    let json = third.types("replica list -o json").await.ends(0).json();
    assert_eq!((json["replicas"][2]["voter"].as_bool(), json["noQuorum"].is_null()), (Some(true), true));

    // The file is of no use any more: not to this machine, which starts without it,
    second.signal(SIGTERM);
    assert_eq!(second.ended().await, Some(0));
    let file = second.path("join-token");
    let token = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    second.start(&["--join-file", file.to_str().unwrap()], None);
    until(&second.socket(), "it is back as itself", |status| status.answered_by == 2 && well(status, 3))
        .await;
    // and not to another one.
    let mut thief = Replica::new();
    std::fs::write(thief.path("join-token"), token).unwrap();
    thief.start(&["--join-file", thief.path("join-token").to_str().unwrap()], None);
    assert_eq!(thief.ended().await, Some(1));
    let said = thief.said();
    assert!(said.lines().last().unwrap().contains("was used by"), "{said}");
    assert!(!thief.data().join("keys/replica.json").exists());

    // Tokens that nobody has used are withdrawn before somebody does.
    let unused = first.types("token create --for replica -o json").await.ends(0).json();
    let tokens = first.types("token list").await.ends(0).rows("ID ");
    let states: Vec<&str> = tokens.iter().map(|row| row["STATE"].as_str()).collect();
    assert_eq!(states, ["used", "used", "unused"], "in the order in which they end");
    assert!(tokens[1]["USED-BY"].starts_with("replica 127.0.0.1:"), "{tokens:?}");
    let id = &tokens[2]["ID"];
    assert_eq!(first.types(&format!("token revoke {id}")).await.ends(0).out, format!("token/{id} revoked\n"));
    first.types(&format!("token revoke {id}")).await.ends(3).complains(&["there is no token", id]);
    let used = &tokens[0]["ID"];
    first.types(&format!("token revoke {used}")).await.ends(1).complains(&["nothing to withdraw"]);
    let mut late = Replica::first_start(&[], Some(unused["token"].as_str().unwrap()));
    assert_eq!(late.ended().await, Some(1));
    assert!(late.said().contains("withdrawn"), "{}", late.said());

    first.types("replica remove 9").await.ends(3).complains(&["there is no replica 9"]);
    first.types("replica promote 9").await.ends(3).complains(&["there is no replica 9"]);
    let mut third = third;
    let removed = first.types("replica remove 3").await.ends(0);
    assert_eq!(removed.out, "replica/3 removed\n");
    removed.complains(&["can still open the root's key", "clustermesh ca rotate"]);
    assert_eq!(third.ended().await, Some(77));
    first.types("replica remove 3").await.ends(3).complains(&["replica 3 was removed"]);
    third.start(&[], None);
    assert_eq!(third.ended().await, Some(77), "starting it again changes nothing: {}", third.said());
    let authority = first.types("ca status").await.ends(0);
    assert!(
        authority.out.contains("\n! replica 3 was removed, and its disk can still open"),
        "{authority:?}"
    );
    assert_eq!(column(&first.types("replica list").await.ends(0), "ID"), ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_every_command_says_so_and_exits_with_5() {
    let mut all = crate::process::three(&[]).await;
    for lost in [2, 0] {
        all[lost].signal(SIGKILL);
        assert_eq!(all[lost].ended().await, None);
    }
    let survivor = &all[1];
    until(&survivor.socket(), "it knows that it is alone", |status| status.no_quorum.is_some()).await;
    for line in ["status", "replica list"] {
        let answer = survivor.types(line).await.ends(5);
        let mut lines = answer.out.lines();
        assert!(
            lines.next().unwrap().starts_with("no quorum: 1 of 3 replicas reachable, since 20"),
            "{answer:?}"
        );
        assert_eq!(lines.next().unwrap(), "What follows is what replica 2 knew last; it may be out of date.");
        answer.complains(&["no quorum: 1 of 3"]);
        assert_eq!(column(&answer, "STATE"), ["unreachable", "reachable", "unreachable"]);
    }
    assert_eq!(survivor.types("status -o json").await.ends(5).json()["noQuorum"]["voters"], 3);
    std::fs::write(
        survivor.path("a.yaml"),
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}",
    )
    .unwrap();
    let file = survivor.path("a.yaml").display().to_string();
    let changes = [
        format!("apply -f {file}"),
        "get svc".to_owned(),
        "token list".to_owned(),
        "token create --for node".to_owned(),
        "ca status".to_owned(),
        "node list".to_owned(),
        "replica remove 3".to_owned(),
    ];
    for line in changes {
        survivor.types(&line).await.ends(5).complains(&["no quorum: 1 of 3"]);
    }
    // Who is connected here, this replica knows by itself.
    let clients = survivor.types("proxy-status").await.ends(0);
    assert!(clients.err.contains("no answer of replicas 1, 3"), "{clients:?}");

    all[0].start(&[], None);
    let back = until(&all[1].socket(), "a majority answers again", |status| {
        status.no_quorum.is_none() && status.leader != 0
    })
    .await;
    assert_eq!(voters(&back), 3);
    all[1].types(&format!("apply -f {file}")).await.ends(0);
    all[1].types("status").await.ends(0);
}
