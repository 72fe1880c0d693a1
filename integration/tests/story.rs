//! The demo's story, asserted. Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is the failure")]

mod support;

use integration::{
    story::{self, World},
    testbed,
};

#[test]
fn every_step_of_the_demo_proves_itself_and_nothing_is_left_behind() {
    if !support::may_run() {
        return;
    }
    let world = World::new().unwrap();
    let folder = world.bed.folder();
    support::prove(&story::full(), world);
    assert!(!folder.exists(), "{} was left behind", folder.display());
    assert_eq!(testbed::lacking(), Vec::<String>::new());
}
