//! `docs/proxy.md` names every field of these messages, and says of the right ones that they are refused: compared with the code
//! that takes the messages apart, which the compiler compares with the messages.

use std::collections::BTreeSet;

const DOCS: &str = include_str!("../../../docs/proxy.md");
const MANAGER: &str = include_str!("../../src/config/hcm.rs");
const PROTOCOL: &str = include_str!("../../src/config/protocol.rs");
const ROUTE: &str = include_str!("../../src/config/route.rs");
const ACTION: &str = include_str!("../../src/config/route_action.rs");

/// Heading, source, and what the message is called there.
const MESSAGES: [(&str, &str, &str); 11] = [
    ("HttpConnectionManager", MANAGER, "WireHcm"),
    ("HttpProtocolOptions", PROTOCOL, "HttpProtocolOptions"),
    ("Http1ProtocolOptions", PROTOCOL, "Http1ProtocolOptions"),
    ("Http2ProtocolOptions", PROTOCOL, "Http2ProtocolOptions"),
    ("RouteConfiguration", ROUTE, "RouteConfiguration"),
    ("VirtualHost", ROUTE, "WireVhost"),
    ("Route", ROUTE, "WireRoute"),
    ("RouteMatch", ROUTE, "WireMatch"),
    ("RouteAction", ACTION, "RouteAction"),
    ("RetryPolicy", ACTION, "WireRetry"),
    ("RedirectAction", ACTION, "RedirectAction"),
];

/// What `Route` takes out of its action before that is taken apart.
const FOR_FILTERS: [&str; 3] = ["rate_limits", "include_vh_rate_limits", "cors"];

fn words<'a>(text: &'a str, end: &str) -> BTreeSet<&'a str> {
    let text = text.split_once(end).unwrap_or_else(|| panic!("no {end:?}")).0;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(|line| line.split(','))
        .map(|word| word.split(':').next().unwrap_or_default().trim().trim_start_matches("r#"))
        .filter(|word| !word.is_empty())
        .collect()
}

/// All fields, and those that are refused whatever is in them.
fn in_code<'a>(source: &'a str, name: &str) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let begin = format!("let {name} {{");
    let rest = source.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?}")).1;
    let all = words(rest, "}");
    let function = rest.split("\n}\n").next().unwrap_or_default();
    let refused = match function.split_once("refuse!(path;") {
        Some((_, rest)) => words(rest, ");"),
        None => BTreeSet::new(),
    };
    (all, refused)
}

/// The same, by the first column of the table below a heading.
fn in_docs(name: &str) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let heading = format!("\n## `{name}`\n");
    let section = DOCS.split_once(&heading).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let table =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for row in table {
        let mut columns = row.trim_matches('|').split('|').map(str::trim);
        let (first, second) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
        let quoted = |text: &'static str| text.split('`').skip(1).step_by(2);
        if first == "refused" {
            refused.extend(quoted(second));
        } else {
            taken.extend(quoted(first));
        }
    }
    (taken, refused)
}

#[test]
fn the_tables_of_fields_say_what_the_code_does() {
    for (name, source, wire) in MESSAGES {
        let (all, mut refused_in_code) = in_code(source, wire);
        if name == "RouteAction" {
            refused_in_code.retain(|field| !FOR_FILTERS.contains(field));
        }
        let (taken, refused) = in_docs(name);
        assert_eq!(refused, refused_in_code, "refused fields of {name}");
        let documented: BTreeSet<_> = taken.union(&refused).copied().collect();
        assert_eq!(documented, all, "fields of {name}");
        assert!(taken.is_disjoint(&refused), "{name}");
    }
}
