//! The table of rules in the documentation names tests that exist.

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../../docs/xds.md");
const SOURCES: &[&str] = &[
    include_str!("ack.rs"),
    include_str!("convergence.rs"),
    include_str!("delta.rs"),
    include_str!("limits.rs"),
    include_str!("on_demand.rs"),
    include_str!("order.rs"),
    include_str!("revisions.rs"),
    include_str!("sotw.rs"),
    include_str!("subscriptions.rs"),
    include_str!("time.rs"),
    include_str!("unknown.rs"),
    include_str!("wire.rs"),
    include_str!("../fuzz.rs"),
    include_str!("../../server/tests/encoding.rs"),
    include_str!("../../server/tests/ends.rs"),
    include_str!("../../server/tests/following.rs"),
    include_str!("../../server/tests/one_type.rs"),
    include_str!("../../server/tests/past.rs"),
    include_str!("../../server/tests/services.rs"),
];

#[test]
fn every_rule_in_the_documentation_names_tests_that_exist_for_both_protocols() {
    let tests: BTreeSet<&str> = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn ")?.split('(').next())
        .collect();
    let section = PAGE.split("\n## ").find(|section| section.starts_with("Rules")).unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() > 30, "{}", rows.len());
    for row in rows {
        assert_eq!(row.len(), 3, "{row:?}");
        let named: Vec<&str> = row[1..].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let named: Vec<&str> = named.into_iter().filter(|name| name.contains('_')).collect();
        assert!(!named.is_empty(), "{row:?} names no test");
        for name in named {
            assert!(tests.contains(name), "{name} of {:?} does not exist", row[0]);
        }
        assert!(row[1..].iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}
