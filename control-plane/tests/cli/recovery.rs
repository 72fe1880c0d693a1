//! `replica recover --force` and `replica rejoin`: for disks that are the last of their group, and for damaged ones.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

use crate::process::{Typed, apply, clustermesh, names, three, until, well};

/// Types a command at a terminal of its own, and then an answer to what it asks.
async fn at_a_terminal(line: &str, answer: &str) -> (i32, String) {
    // script(1) makes the terminal and ends with the command's own code.
    let mut child = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("{} {line}", clustermesh().display()),
            "/dev/null",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{answer}\n").as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("$ clustermesh {line}\n{said}[{:?}]\n", output.status.code());
    (output.status.code().unwrap_or(-1), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_becomes_a_group_by_force_after_a_warning_and_a_confirmation_only() {
    let mut all = three(&[]).await;
    for n in 0..20 {
        apply(&all[0].socket(), &format!("kept{n}")).await.unwrap();
    }
    let revision = until(&all[1].socket(), "all are there", |status| well(status, 3)).await.revision;
    let until_there = |status: &xds_proto::isthmus::admin::v1::StatusResponse| {
        status.replicas.iter().all(|replica| replica.revision >= revision)
    };
    until(&all[1].socket(), "every replica has them", until_there).await;
    for lost in [0, 2] {
        all[lost].signal(SIGKILL);
        assert_eq!(all[lost].ended().await, None);
    }
    let survivor = &mut all[1];
    let data = survivor.data().display().to_string();
    let force = format!("replica recover --data-dir {data} --force");
    let group = || fs::read_to_string(Path::new(&data).join("keys/group.json")).unwrap();
    let before = group();

    // While it runs its disk is its own.
    let running = survivor.types(&format!("{force} --yes")).await.ends(1);
    assert!(running.err.contains("another process uses it"), "{running:?}");
    survivor.signal(SIGTERM);
    assert_eq!(survivor.ended().await, Some(0));

    let unforced = survivor.types(&format!("replica recover --data-dir {data} --yes")).await.ends(64);
    unforced.complains(&["--force", "gives up what the others have"]);
    let warns = |said: &str| {
        for words in
            ["This makes a new raft group of replica 2 of west", "Given up for good", "replica 1 at 127"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
    };
    // Nobody to ask: a script has to say that it means it.
    let unasked = survivor.types(&force).await.ends(64);
    warns(&unasked.out);
    unasked.complains(&["stdin is no terminal", "--yes"]);
    for answer in ["east", "y", ""] {
        let (code, said) = at_a_terminal(&force, answer).await;
        warns(&said);
        assert!(code == 1 && said.contains("Type the cluster's name to go on: "), "{code}: {said}");
        assert!(said.contains("not confirmed; nothing was changed"), "{said}");
    }
    assert_eq!(group(), before, "nothing was changed");
    survivor.types("replica recover --data-dir /nowhere --force --yes").await.ends(1);

    let (code, said) = at_a_terminal(&force, "west").await;
    assert_eq!(code, 0, "{said}");
    warns(&said);
    assert!(said.contains("Replica 2 is the only member of the new group"), "{said}");
    assert_ne!(group(), before);
    // Said instead of asked; and there is nobody left to be given up.
    let again = survivor.types(&format!("{force} --yes")).await.ends(0);
    assert!(again.out.contains("nobody: it is the only member already"), "{again:?}");

    survivor.start(&[], None);
    let seen = until(&survivor.socket(), "it leads", |status| status.leader == 2).await;
    assert!(seen.revision > revision && seen.replicas.len() == 1, "{seen:?}");
    assert_eq!(names(&survivor.socket()).await.len(), 20);
    apply(&survivor.socket(), "anew").await.unwrap();
    survivor.types("status").await.ends(0);
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    // In the header of the file.
    bytes[3] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

fn of_replica(typed: &Typed, id: &str) -> String {
    let rows = typed.rows("ID ");
    let row = rows.iter().find(|row| row["ID"] == id);
    row.unwrap_or_else(|| panic!("no replica {id}: {typed:?}"))["ROLE"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_says_so_and_rejoins_when_it_is_told_to() {
    let mut all = three(&[]).await;
    let home = all[0].socket();
    all[1].types("replica rejoin").await.ends(1).complains(&["replica 2 is well"]);
    for (id, heir) in [(2, 4), (4, 5)] {
        // Whom to ask is kept beside the store.
        let known = all[1].data().join("replicas.json");
        until(&home, "addresses are kept", |status| {
            well(status, 3) && fs::read_to_string(&known).is_ok_and(|text| text.contains("\"3\""))
        })
        .await;
        all[1].signal(SIGTERM);
        assert_eq!(all[1].ended().await, Some(0));
        flip(&all[1].data().join("raft/journal"));
        apply(&home, &format!("without{id}")).await.unwrap();
        all[1].start(&[], None);
        // By itself the first time; then somebody should look first.
        if id == 4 {
            let said = until(&all[1].socket(), "it says that it is damaged", |status| {
                status.replicas.iter().any(|replica| replica.role == "damaged")
            })
            .await;
            assert!(said.failure.contains("raft/journal"), "{}", said.failure);
            let status = all[1].types("status").await;
            let shown = format!("{}{}", status.out, status.err);
            assert!(shown.contains("raft/journal") && shown.contains("replica rejoin"), "{status:?}");
            let refused = all[1].types("get svc").await;
            assert!(refused.code != 0 && refused.err.contains("raft/journal"), "{refused:?}");
            let told = all[1].types("replica rejoin").await.ends(0);
            assert!(told.out.starts_with("replica 4 comes back as replica 5 with an empty log;"), "{told:?}");
            assert!(told.out.contains("-replica-4."), "where the damaged store is kept: {told:?}");
        }
        until(&all[1].socket(), "it is back", |status| {
            well(status, 3) && status.answered_by == heir && status.replicas.iter().any(|r| r.id == heir)
        })
        .await;
    }
    let listed = all[0].types("replica list").await.ends(0);
    assert_eq!(of_replica(&listed, "5"), "follower");
    assert_eq!(names(&all[1].socket()).await, ["without2", "without4"]);
    all[1].types("replica rejoin").await.ends(1).complains(&["replica 5 is well"]);
}
