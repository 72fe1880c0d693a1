//! Every input that is in the corpus, and each of them cut and bent: no panic, and memory in proportion.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use bad_input::{TARGETS, Target};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a reader may need whatever it is given, in bytes: an initialised cluster is part of it.
const AT_LEAST: usize = 8 << 20;
/// And for each byte that it is given: a value of JSON that is written in two characters takes a hundred.
const FOR_EACH_BYTE: usize = 256;

/// Runs a target and looks at what it took.
fn measured((name, target): Target, what: &str, bytes: &[u8]) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    target(bytes);
    let took = MEMORY.peak_usage().saturating_sub(before);
    let allowed = AT_LEAST + bytes.len() * FOR_EACH_BYTE;
    assert!(took <= allowed, "{name}/{what}: {} bytes made it take {took}", bytes.len());
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let read = |path: &std::path::PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
    };
    files.iter().map(read).collect()
}

/// One test, because what others allocate meanwhile would be counted.
/// Seeds that nobody reads any more would lead the fuzzer nowhere.
fn good_seeds_are_still_good() {
    let seeds = |name: &str| -> std::collections::BTreeMap<_, _> { corpus(name).into_iter().collect() };
    let raft = seeds("raft");
    for good in ["vote", "append", "forward", "piece", "answer"] {
        assert!(control_plane::raft::is_frame(&raft[good]), "raft/{good}");
    }
    let token = seeds("token");
    assert!(clustermesh::token::JoinToken::decode(std::str::from_utf8(&token["node"]).unwrap()).is_ok());
    for (name, bytes) in seeds("jwt") {
        let good = bad_input::is_good_token(&bytes);
        assert_eq!(good, ["good", "one", "fraction", "giant", "deep"].contains(&name.as_str()), "jwt/{name}");
    }
    let backup = seeds("backup");
    for (name, bytes) in &backup {
        let good = mesh_store::backup::read(&bytes[..]).is_ok();
        assert_eq!(good, ["shop", "extremes"].contains(&name.as_str()), "backup/{name}");
        assert_eq!(control_plane::raft::is_snapshot(bytes), name == "snapshot", "backup/{name}");
    }
    let snapshot = seeds("snapshot");
    assert!(mesh_store::decode(&snapshot["shop"]).unwrap().objects.len() > 5);
}

#[test]
fn no_input_of_the_corpus_makes_a_reader_panic_or_take_memory_out_of_proportion() {
    good_seeds_are_still_good();
    for target in TARGETS {
        for (file, bytes) in corpus(target.0) {
            measured(target, &file, &bytes);
            // Cut and bent at a few places that depend on nothing but the input.
            let step = bytes.len() / 16 + 1;
            for at in (0..bytes.len()).step_by(step) {
                measured(target, &format!("{file}, cut at {at}"), &bytes[..at]);
                let mut bent = bytes.clone();
                bent[at] ^= 1 << (at % 8);
                measured(target, &format!("{file}, bent at {at}"), &bent);
            }
        }
    }
}
