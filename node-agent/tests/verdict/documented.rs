//! docs/datapath.md says of every program and every map what the kernel says.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use super::support::in_sandbox;

const PAGE: &str = include_str!("../../../docs/datapath.md");

/// The cells of a section's table, by what its first column names.
fn table(section: &str) -> BTreeMap<String, Vec<String>> {
    let text = PAGE.split(&format!("\n## {section}\n")).nth(1).expect("the section is there");
    let text = text.split("\n## ").next().expect("always a first");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<String> =
            line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().to_owned()).collect();
        Some((cells[0].trim_end_matches('`').to_owned(), cells))
    });
    rows.collect()
}

/// 118,782 as people write it.
fn number(cell: &str) -> u32 {
    cell.replace(',', "").parse().unwrap_or_else(|_| panic!("{cell:?} is no number"))
}

fn names(cell: &str) -> BTreeSet<String> {
    cell.split(|character: char| !character.is_ascii_uppercase())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_program_is_in_the_documents_with_its_maps_and_about_its_instructions() {
    in_sandbox(|sandbox| {
        let mut told = table("Programs");
        for size in Node::new(sandbox).kernel.program_sizes().expect("readable") {
            let maps: Vec<&str> = size.maps.iter().map(String::as_str).collect();
            println!("{} {} {}", size.name, size.verified_instructions, maps.join(" "));
            let row =
                told.remove(&size.name).unwrap_or_else(|| panic!("{} is not in the documents", size.name));
            let instructions = number(&row[2]);
            // Another kernel's verifier walks a little more or less.
            let most = instructions + instructions / 4 + 50;
            assert!(
                (instructions / 4 * 3..=most).contains(&size.verified_instructions),
                "{}: {} instructions are documented, {} are verified",
                size.name,
                instructions,
                size.verified_instructions
            );
            assert_eq!(names(&row[3]), size.maps, "{}: its maps", size.name);
        }
        assert!(told.is_empty(), "there are no such programs: {:?}", told.keys());
    });
}

#[test]
fn every_map_is_in_the_documents_with_its_sizes() {
    in_sandbox(|sandbox| {
        let mut told = table("Maps");
        for map in Node::new(sandbox).kernel.map_sizes().expect("readable") {
            println!(
                "{} key {} value {} limit {} {}",
                map.name, map.key, map.value, map.limit, map.is_pinned
            );
            let row =
                told.remove(&map.name).unwrap_or_else(|| panic!("{} is not in the documents", map.name));
            let sizes = [number(&row[2]), number(&row[3]), number(&row[4])];
            assert_eq!(sizes, [map.key, map.value, map.limit], "{}: key, value, limit", map.name);
        }
        assert!(told.is_empty(), "there are no such maps: {:?}", told.keys());
    });
}

#[test]
fn the_picture_shows_every_program() {
    let picture = include_str!("../../../docs/datapath.svg");
    for name in table("Programs").keys() {
        assert!(picture.contains(&format!(">{name}<")), "{name} is not in docs/datapath.svg");
    }
}
