//! Objects in a text: YAML or JSON, one document or several, each with the place where it stands.
//!
//! Only the outline is checked here (apiVersion, kind, metadata.name): what a kind allows is the control plane's to
//! say, and it names the field.

use serde_json::{Map, Value};
use thiserror::Error;

/// Largest single document, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;
/// Most documents of one text.
const MAX_DOCUMENTS: usize = 10_000;
/// Deepest nesting of a document.
const MAX_DEPTH: usize = 64;
/// Most anchors, and most uses of them, in a document.
const MAX_ALIASES: usize = 256;
/// Most nodes that aliases may unfold to: a "billion laughs" ends here.
const MAX_UNFOLDED: usize = 10_000;

/// A text has no objects, or none that can be read. One sentence, with file, document and line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ManifestError(pub String);

/// One object and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// `shop.yaml, document 2`
    pub place: String,
    #[allow(missing_docs)]
    pub object: Value,
}

/// Splits a text into documents and parses each. Empty documents are skipped, `kind: List` is unfolded.
///
/// # Errors
/// See [`ManifestError`].
pub fn parse(source: &str, text: &str) -> Result<Vec<Document>, ManifestError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let chunks = if text.trim_start().starts_with('{') {
        json_chunks(source, text)?
    } else {
        yaml_chunks(source, text)?
    };
    let single = chunks.len() == 1;
    for (number, value) in chunks {
        let place = if single { source.to_owned() } else { format!("{source}, document {number}") };
        unfold(place, value, &mut documents)?;
    }
    Ok(documents)
}

fn json_chunks(source: &str, text: &str) -> Result<Vec<(usize, Value)>, ManifestError> {
    let mut chunks = Vec::new();
    for (at, value) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
        if at >= MAX_DOCUMENTS {
            return Err(too_many(source));
        }
        match value {
            Ok(value) => chunks.push((at + 1, value)),
            // Flow-style YAML begins with a brace as well.
            Err(_) if at == 0 && !source.to_ascii_lowercase().ends_with(".json") => {
                return yaml_chunks(source, text);
            }
            Err(error) => {
                return Err(ManifestError(format!("{source}, document {}: no JSON: {error}", at + 1)));
            }
        }
    }
    Ok(chunks)
}

fn yaml_chunks(source: &str, text: &str) -> Result<Vec<(usize, Value)>, ManifestError> {
    let mut chunks = Vec::new();
    let parts = split_documents(text);
    if parts.len() > MAX_DOCUMENTS {
        return Err(too_many(source));
    }
    let single = parts.len() == 1;
    for (number, first_line, chunk) in parts {
        let place = if single { source.to_owned() } else { format!("{source}, document {number}") };
        if chunk.len() > MAX_DOCUMENT {
            return Err(ManifestError(format!(
                "{place}: it has {} bytes, {MAX_DOCUMENT} are allowed",
                chunk.len()
            )));
        }
        let value: Value = serde_saphyr::from_str_with_options(chunk, options())
            .map_err(|error| ManifestError(format!("{place}: {}", yaml_error(&error, first_line))))?;
        if !value.is_null() {
            chunks.push((number, value));
        }
    }
    Ok(chunks)
}

fn too_many(source: &str) -> ManifestError {
    ManifestError(format!("{source}: it has more than {MAX_DOCUMENTS} documents; divide it"))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_depth: MAX_DEPTH,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_UNFOLDED,
            max_replay_stack_depth: 16,
        },
        // YAML 1.2: a label `on` is a text.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// One line, with the line of the file instead of that of the document.
fn yaml_error(error: &serde_saphyr::Error, first_line: usize) -> String {
    // The default texts are for whoever writes a deserializer.
    let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let message = text.lines().next().unwrap_or("");
    match error.location() {
        Some(at) => {
            let (line, column) = (at.line(), at.column());
            let message = message
                .trim_end_matches(&format!(" at line {line}, column {column}"))
                .trim_start_matches(&format!("line {line} column {column}: "));
            let line = line.saturating_add(first_line as u64 - 1);
            format!("line {line}, column {column}: {message}")
        }
        None => message.to_owned(),
    }
}

/// Cuts at lines that begin with `---`: YAML lets nothing else stand there (YAML 1.2.2 section 9.1.2). Yields
/// number, first line (both from 1) and text.
fn split_documents(text: &str) -> Vec<(usize, usize, &str)> {
    let mut parts = Vec::new();
    let (mut from, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > from {
            parts.push((first_line, &text[from..at]));
            (from, first_line) = (at, index + 1);
        }
        at += line.len();
    }
    parts.push((first_line, &text[from..]));
    // A leading block of comments before the first marker is no document.
    let says_something = |chunk: &str| {
        chunk.lines().any(|l| {
            let l = l.trim();
            !l.is_empty() && !l.starts_with('#') && !l.starts_with('%') && l != "---" && l != "..."
        })
    };
    parts
        .into_iter()
        .filter(|(_, chunk)| says_something(chunk))
        .enumerate()
        .map(|(i, (line, chunk))| (i + 1, line, chunk))
        .collect()
}

fn unfold(place: String, value: Value, into: &mut Vec<Document>) -> Result<(), ManifestError> {
    let bad = |what: &str| ManifestError(format!("{place}: {what}"));
    let Value::Object(mut map) = value else {
        return Err(bad("it is no object; write apiVersion, kind, metadata and spec"));
    };
    if map.get("kind").and_then(Value::as_str).is_some_and(|k| k == "List") {
        let Some(Value::Array(items)) = map.remove("items") else {
            return Err(bad("items is missing or no list"));
        };
        for (i, item) in items.into_iter().enumerate() {
            let place = format!("{place}, items[{i}]");
            if item["kind"] == "List" {
                return Err(ManifestError(format!("{place}: a List cannot be in a List")));
            }
            unfold(place, item, into)?;
        }
        return Ok(());
    }
    for field in ["apiVersion", "kind"] {
        required_text(&map, field).map_err(|what| bad(&what))?;
    }
    match map.get("metadata") {
        Some(Value::Object(metadata)) => {
            required_text(metadata, "name").map_err(|what| bad(&format!("metadata.{what}")))?;
        }
        Some(_) => return Err(bad("metadata is no mapping")),
        None => return Err(bad("metadata is missing")),
    }
    into.push(Document { place, object: Value::Object(map) });
    Ok(())
}

fn required_text(map: &Map<String, Value>, field: &str) -> Result<(), String> {
    match map.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(()),
        Some(Value::String(_)) => Err(format!("{field} is empty")),
        Some(other) => Err(format!("{field} is {other}, not a text")),
        None => Err(format!("{field} is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const TWO: &str = "# a shop\n---\napiVersion: v1\nkind: Service\nmetadata: {name: pay}\n---\n# nothing\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n";

    fn failure(text: &str) -> String {
        parse("x.yaml", text).unwrap_err().0
    }

    #[test]
    fn several_documents_are_read_and_numbered() {
        let documents = parse("shop.yaml", TWO).unwrap();
        let places: Vec<_> = documents.iter().map(|d| d.place.as_str()).collect();
        assert_eq!(places, ["shop.yaml, document 1", "shop.yaml, document 2"]);
        assert_eq!(documents[1].object["metadata"]["name"], "web");
    }

    #[test]
    fn json_and_lists_are_read() {
        let item = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pay"}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [item, item]});
        let documents = parse("x.json", &format!("{list}\n{item}")).unwrap();
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[1].place, "x.json, document 1, items[1]");
        assert_eq!(parse("x", "{apiVersion: v1, kind: Service, metadata: {name: pay}}").unwrap().len(), 1);
        let sentence = parse("x.json", "{\"kind\": }").unwrap_err().0;
        assert!(sentence.starts_with("x.json, document 1: no JSON"), "{sentence}");
    }

    #[test]
    fn values_keep_their_types() {
        let text = "apiVersion: v1\nkind: X\nmetadata: {name: a, labels: {on: \"1\", yes: 'no'}}\nspec:\n  a: 08\n  b: 1.5\n  c: true\n  d: on\n  e: |\n    --- not a marker\n  f: ~\n";
        let object = &parse("x", text).unwrap()[0].object;
        assert_eq!(object["spec"]["b"], 1.5);
        assert_eq!(object["spec"]["c"], true);
        assert_eq!(object["spec"]["d"], "on");
        assert_eq!(object["spec"]["e"], "--- not a marker\n");
        assert_eq!(object["metadata"]["labels"]["on"], "1");
        assert!(object["spec"]["f"].is_null());
    }

    #[test]
    fn errors_name_file_document_and_line() {
        let text = format!("{TWO}---\napiVersion: v1\nkind: [\n");
        let sentence = failure(&text);
        assert!(sentence.starts_with("x.yaml, document 3: line 15, column"), "{sentence}");
        let sentence = failure("a: 1\na: 2\n");
        assert!(sentence.contains("line 2") && sentence.contains("duplicate"), "{sentence}");
        assert!(!sentence.contains("Policy"), "no advice for programmers: {sentence}");
    }

    #[test]
    fn the_outline_is_checked_and_the_field_named() {
        for (text, said) in [
            ("- a\n", "no object"),
            ("just text", "no object"),
            ("kind: Service\nmetadata: {name: x}", "apiVersion is missing"),
            ("apiVersion: v1\nmetadata: {name: x}", "kind is missing"),
            ("apiVersion: 1\nkind: Service\nmetadata: {name: x}", "apiVersion is 1, not a text"),
            ("apiVersion: v1\nkind: Service", "metadata is missing"),
            ("apiVersion: v1\nkind: Service\nmetadata: [x]", "metadata is no mapping"),
            ("apiVersion: v1\nkind: Service\nmetadata: {}", "metadata.name is missing"),
            ("apiVersion: v1\nkind: Service\nmetadata: {name: ''}", "metadata.name is empty"),
            ("apiVersion: v1\nkind: List", "items is missing"),
        ] {
            let sentence = failure(text);
            assert!(sentence.contains(said), "{text:?}: {sentence}");
        }
    }

    #[test]
    fn bombs_and_giants_are_refused() {
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f")] {
            let uses = vec![format!("*{of}"); 10].join(", ");
            laughs.push_str(&format!("{name}: &{name} [{uses}]\n"));
        }
        assert!(parse("x", &laughs).is_err());
        assert!(parse("x", &format!("a: {}", "[".repeat(5000))).is_err());
        let sentence = failure(&format!("a: {}", "x".repeat(MAX_DOCUMENT)));
        assert!(sentence.contains("are allowed"), "{sentence}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            lines in prop::collection::vec("(---|\\.\\.\\.|%YAML|- |kind: |[&*]a |[{}\\[\\],:]|\\PC{0,20})", 0..12),
        ) {
            let _ = parse("x.yaml", &lines.join("\n"));
            let _ = parse("x.json", &lines.concat());
        }
    }
}
