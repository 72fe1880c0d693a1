//! The demo's story, asserted. Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

use integration::{
    story::{self, Outcome, Printed, World},
    testbed,
};

#[test]
fn every_step_of_the_demo_proves_itself_and_nothing_is_left_behind() {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let mut world = World::new().unwrap();
    let folder = world.bed.folder();
    let told = story::tell(&story::full(), &mut world, &Printed);
    drop(world);
    let failed: Vec<_> = told
        .iter()
        .filter_map(|t| match &t.outcome {
            Outcome::Failed(why) => Some(format!("{}: {why}", t.title)),
            Outcome::NotRun => Some(format!("{}: not run", t.title)),
            Outcome::Proved(_) => None,
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(!folder.exists(), "{} was left behind", folder.display());
    assert_eq!(testbed::lacking(), Vec::<String>::new());
}
