//! Policies as users write them, applied with `clustermesh`, and proved by packets of both families between pods, nodes and
//! a host outside; by what `clustermesh explain` says of them; and by the flows that were told.
//!
//! Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

// In a test an unwrap is the failure; clippy sees helpers of integration tests as plain code.
#![allow(clippy::unwrap_used)]

mod case;
mod mesh;
mod probe;
mod standing;
mod tables;

use std::time::Instant;

use mesh::Mesh;

#[test]
fn packets_explanations_and_flows_agree_with_what_policies_say() {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let mesh = Mesh::start().unwrap();
    let only = std::env::var("ONLY").unwrap_or_default();
    let (mut wrong, mut told) = (Vec::new(), Vec::new());
    for case in tables::all().filter(|case| case.object.contains(&only)) {
        let start = Instant::now();
        match case.run(&mesh) {
            Ok((found, of)) => {
                println!(
                    "{}: {} packets, {} wrong, {:?}",
                    case.object,
                    of.len(),
                    found.len(),
                    start.elapsed()
                );
                wrong.extend(found);
                told.extend(of);
            }
            Err(error) => wrong.push(format!("{}: {error:#}", case.object)),
        }
    }
    wrong.extend(case::untold(&mesh, &told).unwrap());
    match standing::cut(&mesh) {
        Ok(connections) => println!("{connections} connections that stand, of which policies cut some"),
        Err(error) => wrong.push(format!("connections that stand: {error:#}")),
    }
    drop(mesh);
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(!told.is_empty());
}
