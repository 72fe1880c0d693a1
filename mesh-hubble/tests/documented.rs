//! docs/hubble.md has every field with the number that it has on the wire, and every reason of a drop.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

const DOCUMENT: &str = include_str!("../../docs/hubble.md");
const PROTO: &str = include_str!("../../xds-proto/proto/flow/flow.proto");

/// Cells of the table below a heading, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let part = DOCUMENT.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    part.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

/// Names and numbers of the fields of a message in the .proto.
fn fields(message: &str) -> BTreeMap<String, u32> {
    let body = PROTO.split(&format!("message {message} {{")).nth(1).unwrap().split("\n}").next().unwrap();
    body.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(';')?.0.split_once('=')?;
            Some((left.split_whitespace().last()?.to_owned(), right.trim().parse().ok()?))
        })
        .collect()
}

#[test]
fn every_field_of_a_flow_is_documented_with_its_number() {
    let documented: BTreeMap<String, u32> =
        table("Fields of a flow").into_iter().map(|row| (row[1].clone(), row[2].parse().unwrap())).collect();
    assert_eq!(documented, fields("Flow"));
}

#[test]
fn every_reason_is_documented_with_hubbles_name_and_number() {
    let rows = table("Why packets are dropped");
    for row in &rows {
        let theirs = mesh_hubble::drop_reason(&row[1]);
        assert_eq!(
            (theirs.as_str_name(), theirs as i32),
            (row[2].as_str(), row[3].parse().unwrap()),
            "{row:?}"
        );
    }
    let documented: std::collections::BTreeSet<&str> = rows.iter().map(|row| row[1].as_str()).collect();
    for reason in ebpf_shared::Reason::ALL {
        let passes = matches!(reason.name(), "FORWARDED" | "AUDITED" | "REDIRECTED");
        assert_eq!(documented.contains(reason.name()), !passes, "{}", reason.name());
        assert_eq!(mesh_hubble::drop_reason(reason.name()) as i32 == 0, passes, "{}", reason.name());
    }
}
