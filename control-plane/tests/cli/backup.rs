//! `backup`, `backup --verify` and `restore`: what is good comes back, and what is damaged is refused before anything
//! is touched.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::process::{Replica, WEST, apply, names, until};

/// Makes a backup in which the root's key is sealed: before that it is in the first replica's folder alone.
async fn sealed_backup(replica: &Replica, file: &Path) -> crate::process::Typed {
    loop {
        let made = replica.types(&format!("backup {}", file.display())).await.ends(0);
        let (_, state) = mesh_store::backup::read(fs::File::open(file).unwrap()).unwrap();
        if state.authority.roots.values().any(|root| !root.sealed.is_empty()) {
            return made;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        fs::copy(item.path(), to.join(item.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_checked_and_restored_and_a_damaged_one_is_refused_before_anything_is_changed() {
    let first = Replica::first_start(&WEST, None);
    let home = first.socket();
    until(&home, "the first leads", |status| status.leader == 1).await;
    apply(&home, "kept").await.unwrap();
    let file = first.path("west.backup");
    let shown = file.display().to_string();
    let made = sealed_backup(&first, &file).await;
    assert!(
        made.out.starts_with(&format!("{shown}: cluster west, trust domain west.example, revision ")),
        "{made:?}"
    );
    assert!(made.out.contains(" 1 objects, made 20"), "{made:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!first.path("west.backup.unfinished").exists());
    let verified = first.types(&format!("backup --verify {shown}")).await.ends(0);
    assert_eq!(verified.out, made.out, "the same is read from the file");
    let lost = apply(&home, "lost").await.unwrap();

    let mut machine = Replica::new();
    let (data, address) = (machine.data().display().to_string(), machine.address());
    let restore =
        |file: &str, more: &str| format!("restore {file} --data-dir {data} --advertise {address}{more}");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x10;
    let bad = [
        ("flipped", &flipped[..]),
        ("cut", &good[..good.len() - 1]),
        ("half", &good[..good.len() / 2]),
        ("empty", &[]),
    ];
    for (name, bytes) in bad {
        let path = first.path(name);
        fs::write(&path, bytes).unwrap();
        let path = path.display().to_string();
        for line in [
            format!("backup --verify {path}"),
            format!("restore {path} --check"),
            restore(&path, ""),
            restore(&path, " --new-authority"),
        ] {
            first.types(&line).await.ends(1).complains(&[&path, "is not a good backup"]);
        }
        assert!(!machine.data().exists(), "{name}: nothing was changed");
    }
    let nowhere = first.path("nowhere").display().to_string();
    first.types(&format!("backup --verify {nowhere}")).await.ends(1).complains(&["nowhere: No such file"]);
    assert_eq!(first.types(&format!("restore {shown} --check")).await.ends(0).out, made.out);
    first.types(&format!("restore {shown}")).await.ends(64);

    // Without the cluster's keys it takes a word more.
    let refused = first.types(&restore(&shown, "")).await.ends(1);
    assert!(refused.err.contains("--new-authority"), "{refused:?}");
    assert!(!machine.data().join("raft").exists());
    copy(&first.data().join("keys"), &machine.data().join("keys"));
    let told = first.types(&restore(&shown, "")).await.ends(0);
    let (_, told) = told.out.split_once("restored cluster west from revision ").unwrap();
    let (number, _) = told.split_once("as replica ").unwrap().1.split_once(' ').unwrap();
    assert!(told.contains(&format!(" at {}", machine.address())), "{told}");
    let number: u64 = number.parse().unwrap();
    assert!(number > 1_000, "a number that none of the lost cluster's replicas can have: {number}");
    // Whatever is there is not overwritten.
    first.types(&restore(&shown, "")).await.ends(1).complains(&["there is a store already"]);

    let roots = first.types("ca status -o json").await.ends(0).json()["roots"].clone();
    machine.start(&[], None);
    let seen = until(&machine.socket(), "the restored one leads", |status| status.leader == number).await;
    assert!(seen.revision > lost + 900_000, "nobody sees revisions go back: {}", seen.revision);
    assert_eq!(names(&machine.socket()).await, ["kept"]);
    let restored = machine.types("ca status -o json").await.ends(0).json()["roots"].clone();
    assert_eq!(restored[0]["sha256"], roots[0]["sha256"], "{restored}");
    apply(&machine.socket(), "anew").await.unwrap();
    // A store that is in use is not a place to restore to either, and the command changes nothing.
    first.types(&restore(&shown, "")).await.ends(1).complains(&["there is a store already"]);
    assert_eq!(names(&machine.socket()).await, ["anew", "kept"]);
}
