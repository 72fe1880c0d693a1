//! Every command that the documents show is run as it stands there, in order.

// In a test an unwrap is the failure; clippy sees helpers of integration tests as plain code.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A document with commands, and the folder that they use: what is run is what is printed.
const DOCUMENTS: [(&str, &str); 2] =
    [("README.md", "/tmp/isthmus-tour"), ("docs/guide.md", "/tmp/isthmus-guide")];

/// A block of commands: what is fenced as `console`.
#[derive(Debug, PartialEq)]
struct Block {
    /// What to run: the whole block in one shell, or each refused command in one of its own.
    commands: Vec<String>,
    /// Begun with `$ `: the command is shown for its refusal.
    refused: bool,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut inside: Option<Vec<String>> = None;
    for line in markdown.lines() {
        match (line.trim_end(), inside.as_mut()) {
            ("```console", _) => inside = Some(Vec::new()),
            ("```", Some(_)) => {
                let lines = inside.take().unwrap_or_default();
                let refused = lines.iter().any(|l| l.starts_with("$ "));
                let commands = if refused {
                    lines.iter().filter_map(|l| l.strip_prefix("$ ")).map(str::to_owned).collect()
                } else {
                    vec![lines.join("\n")]
                };
                blocks.push(Block { commands, refused });
            }
            (line, Some(lines)) => lines.push(line.to_owned()),
            _ => {}
        }
    }
    blocks
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Ends the processes that a document's commands start, and removes their folder.
struct Tour {
    folder: PathBuf,
    processes: BTreeSet<String>,
}

impl Tour {
    /// The folder must not be anybody's yet.
    fn begin(folder: &str) -> Self {
        let folder = PathBuf::from(folder);
        assert!(
            !folder.exists(),
            "{0} is there already: end the tour that uses it, and remove it",
            folder.display()
        );
        Self { folder, processes: BTreeSet::new() }
    }

    /// Runs commands in a shell that has what the document's first line exports.
    fn run(&mut self, commands: &str) -> Output {
        let binaries = Path::new(env!("CARGO_BIN_EXE_demo")).parent().unwrap();
        let export = format!(
            "export PATH={}:$PATH CLUSTERMESH_SOCKET={}/admin.sock",
            binaries.display(),
            self.folder.display()
        );
        let output = Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", &format!("{export}\n{commands}")])
            .current_dir(repository())
            .output()
            .unwrap();
        self.note(&String::from_utf8_lossy(&output.stdout));
        output
    }

    /// What starts a process says which: `… process 4711, …`.
    fn note(&mut self, output: &str) {
        for rest in output.split("process ").skip(1) {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if !number.is_empty() {
                self.processes.insert(number);
            }
        }
    }
}

impl Drop for Tour {
    fn drop(&mut self) {
        for process in &self.processes {
            let _ = Command::new("kill").args(["-KILL", process]).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn every_command_of_the_documents_does_what_they_say() {
    for (document, folder) in DOCUMENTS {
        let text = fs::read_to_string(repository().join(document)).unwrap();
        let blocks = blocks(&text);
        assert!(blocks.len() >= 2, "{document} has {} blocks of commands", blocks.len());
        let mut tour = Tour::begin(folder);
        for block in blocks {
            for commands in &block.commands {
                let output = tour.run(commands);
                let refusal = String::from_utf8_lossy(&output.stderr);
                let said = format!(
                    "{document}:\n{commands}\n\n{}{refusal}",
                    String::from_utf8_lossy(&output.stdout)
                );
                assert_eq!(output.status.success(), !block.refused, "{said}");
                if commands.contains(" init ") {
                    assert!(!tour.processes.is_empty(), "init does not say which process it started: {said}");
                }
                if block.refused {
                    assert!(
                        text.contains(refusal.trim()),
                        "{document} shows another answer than {refusal:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_are_told_apart_by_their_prompt() {
    let text = "```console\na\nb\n```\ntext\n```console\n$ c\nanswer\n```\n```sh\nd\n```\n";
    assert_eq!(
        blocks(text),
        [
            Block { commands: vec!["a\nb".into()], refused: false },
            Block { commands: vec!["c".into()], refused: true },
        ]
    );
}
