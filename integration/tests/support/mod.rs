//! What tests that tell a story share.

use integration::story::{self, Outcome, Printed, Step};

/// Whether there is a machine for it. Says so if not: needs root and eBPF, and SKIP_PRIVILEGED=1 leaves it out.
pub fn may_run() -> bool {
    let skipped = std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1");
    if skipped {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
    }
    !skipped
}

/// Tells a story, and takes its world down before it says what was not proved.
pub fn prove<W>(steps: &[Step<W>], mut world: W) {
    let told = story::tell(steps, &mut world, &Printed);
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
}
