//! Bytes from anywhere, into every reader that faces outside. Each target is a function of bytes that may refuse them
//! but must not panic, loop or take memory out of proportion; where it reads something, it also checks that what was
//! read survives being written.
//!
//! `fuzz/` runs these under libFuzzer; `tests/replay.rs` runs them on the corpus in every `make test`.
#![forbid(unsafe_code)]

mod backup;
mod cni;
mod csds;
mod dns;
mod jwt;
mod load;
mod objects;
mod raft;
mod snapshot;
mod token;
mod xds;

/// Name of the target (and of its corpus), and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("objects", objects::objects),
    ("xds", xds::xds),
    ("csds", csds::csds),
    ("load", load::load),
    ("raft", raft::raft),
    ("snapshot", snapshot::snapshot),
    ("backup", backup::backup),
    ("token", token::token),
    ("dns", dns::dns),
    ("jwt", jwt::jwt),
    ("cni", cni::cni),
];

/// Whether a seed of `jwt` is a token that counts.
pub fn is_good_token(bytes: &[u8]) -> bool {
    jwt::verified(bytes).is_some()
}

/// Runs a target by its name.
///
/// # Panics
/// There is no such target, or it found something.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a known target");
    target(bytes);
}
