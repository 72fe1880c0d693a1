//! docs/datapath.md says of every program and every map what the kernel says.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use super::support::in_sandbox;

fn page(name: &str) -> String {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cells of a section's table, by what its first column names.
fn table(section: &str) -> BTreeMap<String, Vec<String>> {
    let page = page("datapath.md");
    let text = page.split(&format!("\n## {section}\n")).nth(1).expect("the section is there");
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
    cell.split(|character: char| !character.is_ascii_uppercase() && character != '_')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_program_is_in_the_documents_with_its_maps_and_about_its_instructions() {
    in_sandbox(|sandbox| {
        let (mut told, mut wrong) = (table("Programs"), Vec::new());
        for size in Node::new(sandbox).kernel.program_sizes().expect("readable") {
            let maps: Vec<&str> = size.maps.iter().map(String::as_str).collect();
            let found = format!("`{}` | {} | {}", size.name, size.verified_instructions, maps.join(" "));
            println!("{found}");
            let is_right = told.remove(&size.name).is_some_and(|row| {
                let instructions = number(&row[2]);
                // Another kernel's verifier walks a little more or less.
                let about = instructions / 4 * 3..=instructions / 4 * 5 + 50;
                about.contains(&size.verified_instructions) && names(&row[3]) == size.maps
            });
            if !is_right {
                wrong.push(found);
            }
        }
        assert!(
            wrong.is_empty() && told.is_empty(),
            "rows to write: {wrong:#?}; to remove: {:?}",
            told.keys()
        );
    });
}

#[test]
fn every_map_is_in_the_documents_with_its_sizes() {
    in_sandbox(|sandbox| {
        let (mut told, mut wrong) = (table("Maps"), Vec::new());
        for map in Node::new(sandbox).kernel.map_sizes().expect("readable") {
            let sizes = [map.key, map.value, map.limit];
            let is_right =
                told.remove(&map.name).is_some_and(|row| [2, 3, 4].map(|cell| number(&row[cell])) == sizes);
            if !is_right {
                wrong.push(format!("`{}`: key, value and limit are {sizes:?}", map.name));
            }
        }
        assert!(
            wrong.is_empty() && told.is_empty(),
            "rows to write: {wrong:#?}; to remove: {:?}",
            told.keys()
        );
    });
}

#[test]
fn the_picture_shows_every_program() {
    let picture = page("datapath.svg");
    for name in table("Programs").keys() {
        assert!(picture.contains(&format!(">{name}<")), "{name} is not in docs/datapath.svg");
    }
}
