//! What only root may do is never skipped without a word.

/// Whether to run a test that takes root. `make test` runs as root; whoever does not says so.
///
/// # Panics
/// Without root, unless `SKIP_PRIVILEGED=1` is set.
pub fn privileged(for_what: &str) -> bool {
    if std::env::var("SKIP_PRIVILEGED").is_ok_and(|value| value == "1") {
        println!("skipped: {for_what} takes root, and SKIP_PRIVILEGED=1 is set");
        return false;
    }
    let root = nix::unistd::Uid::effective().is_root();
    assert!(root, "{for_what} takes root; set SKIP_PRIVILEGED=1 to do without this test");
    true
}
