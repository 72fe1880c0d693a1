//! Reading objects from files, folders and stdin, and placing them in a namespace.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

pub(crate) use clustermesh::manifest::Document;
use clustermesh::manifest::{ManifestError, parse};
use mesh_model::resource::Kind;
use serde_json::Value;

use super::failure::Failure;

impl From<ManifestError> for Failure {
    fn from(ManifestError(sentence): ManifestError) -> Self {
        Self::failed(sentence)
    }
}

/// Largest file, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Most objects of one command.
const MAX_OBJECTS: usize = 10_000;
/// Reads all files, then everything that is in them.
pub(crate) fn read(paths: &[String], namespace: Option<&str>) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    let mut stdin_read = false;
    for path in paths {
        if path == "-" {
            if std::mem::replace(&mut stdin_read, true) {
                return Err(Failure::usage("'-' (stdin) can be read once only"));
            }
            let text = limited(io::stdin().lock(), "stdin")?;
            documents.extend(parse("stdin", &text)?);
            continue;
        }
        for file in files(Path::new(path))? {
            let name = file.display().to_string();
            let opened = fs::File::open(&file).map_err(|e| unreadable(&name, &e))?;
            documents.extend(parse(&name, &limited(opened, &name)?)?);
        }
        if documents.len() > MAX_OBJECTS {
            return Err(Failure::failed(format!(
                "more than {MAX_OBJECTS} objects are given; apply them in several commands"
            )));
        }
    }
    for document in &mut documents {
        place_in_namespace(document, namespace)?;
    }
    if documents.is_empty() {
        let names: Vec<_> =
            paths.iter().map(|path| if path == "-" { "stdin" } else { path.as_str() }).collect();
        return Err(Failure::failed(format!("there is no object in {}", names.join(", "))));
    }
    Ok(documents)
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot read {name}: {error}"))
}

fn limited(source: impl Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| unreadable(name, &e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::failed(format!("{name} is larger than {} MiB; split it", MAX_FILE >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        Failure::failed(format!("{name} is not UTF-8 text (at byte {})", e.utf8_error().valid_up_to()))
    })
}

/// The file itself, or the manifests of a folder by name (not of the folders in it).
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let name = path.display().to_string();
    let metadata = fs::metadata(path).map_err(|e| unreadable(&name, &e))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| unreadable(&name, &e))? {
        let file = entry.map_err(|e| unreadable(&name, &e))?.path();
        let manifest = file
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| matches!(e.to_ascii_lowercase().as_str(), "yaml" | "yml" | "json"));
        if manifest && file.is_file() {
            found.push(file);
        }
    }
    if found.is_empty() {
        return Err(Failure::failed(format!("the folder {name} has no *.yaml, *.yml or *.json")));
    }
    found.sort();
    Ok(found)
}

/// Objects that name no namespace get that of the command line; two different ones are a mistake.
fn place_in_namespace(document: &mut Document, wanted: Option<&str>) -> Result<(), Failure> {
    let place = document.place.clone();
    let kind = document.object.get("kind").and_then(Value::as_str).and_then(Kind::from_user);
    if kind.is_some_and(Kind::is_cluster_scoped) {
        return Ok(());
    }
    let Some(Value::Object(metadata)) = document.object.get_mut("metadata") else {
        return Ok(()); // checked in `unfold`
    };
    match metadata.get("namespace") {
        None | Some(Value::Null) => {
            metadata.insert("namespace".to_owned(), Value::from(wanted.unwrap_or("default")));
            Ok(())
        }
        Some(Value::String(own)) => match wanted {
            Some(wanted) if wanted != own => Err(Failure::failed(format!(
                "{place}: metadata.namespace is {own:?}, but -n says {wanted:?}; leave one of them out"
            ))),
            _ => Ok(()),
        },
        Some(other) => Err(Failure::failed(format!("{place}: metadata.namespace is {other}, not a text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# a shop\n---\napiVersion: v1\nkind: Service\nmetadata: {name: pay}\n---\n# nothing\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n";

    #[test]
    fn a_namespace_is_filled_in_and_a_contradiction_refused() {
        let mut document = parse("x", TWO).unwrap().remove(0);
        let mut other = document.clone();
        place_in_namespace(&mut document, None).unwrap();
        assert_eq!(document.object["metadata"]["namespace"], "default");
        place_in_namespace(&mut other, Some("shop")).unwrap();
        assert_eq!(other.object["metadata"]["namespace"], "shop");
        let everywhere =
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: x}\n";
        let mut of_cluster = parse("x", everywhere).unwrap().remove(0);
        place_in_namespace(&mut of_cluster, Some("shop")).unwrap();
        assert!(of_cluster.object["metadata"].get("namespace").is_none());
        let failure = place_in_namespace(&mut other, Some("pay")).unwrap_err();
        assert!(failure.sentence.contains("\"shop\"") && failure.sentence.contains("\"pay\""));
    }

    #[test]
    fn a_folder_is_read_in_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let one = |n: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {n}}}\n");
        fs::write(folder.path().join("b.yml"), one("b")).unwrap();
        fs::write(folder.path().join("a.yaml"), one("a")).unwrap();
        fs::write(folder.path().join("README.md"), "not this").unwrap();
        fs::create_dir(folder.path().join("c.yaml")).unwrap();
        let path = folder.path().display().to_string();
        let names: Vec<_> =
            read(&[path], None).unwrap().iter().map(|d| d.object["metadata"]["name"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
        let empty = folder.path().join("c.yaml").display().to_string();
        assert!(read(&[empty], None).unwrap_err().sentence.contains("has no *.yaml"));
        assert!(read(&["/no/such/file".to_owned()], None).unwrap_err().sentence.contains("/no/such/file"));
    }
}
