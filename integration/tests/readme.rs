//! Every command of the README's tour is run as it stands there, in order, in one shell.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A block of commands: what is fenced as `console`.
#[derive(Debug, PartialEq)]
struct Block {
    /// Lines to run.
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
                    lines
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

/// Ends the replica that the tour starts, and removes its folder.
struct Tour {
    folder: PathBuf,
    process: Option<String>,
}

impl Tour {
    /// `clustermesh init` says which process it started: `… process 4711, …`.
    fn note(&mut self, output: &str) {
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        if let Some((_, rest)) = output.split_once("process ") {
            self.process = Some(digits(rest)).filter(|p| !p.is_empty());
        }
    }
}

impl Drop for Tour {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            let _ = Command::new("kill").args(["-KILL", process]).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(blocks.len() >= 2, "the README has {} blocks of commands", blocks.len());
    let binaries = PathBuf::from(env!("CARGO_BIN_EXE_demo")).parent().unwrap().to_owned();
    // The README's own folder, so that what is run is what is printed; it must not be anybody's yet.
    let tour = Path::new("/tmp/isthmus-tour");
    assert!(!tour.exists(), "{} is there already: end the tour that uses it, and remove it", tour.display());
    let mut guard = Tour { folder: tour.to_owned(), process: None };
    let export = format!(
        "export PATH={}:$PATH CLUSTERMESH_SOCKET={}/admin.sock\n",
        binaries.display(),
        tour.display()
    );
    for block in blocks {
        for command in &block.commands {
            let output = Command::new("bash")
                .args(["-e", "-c", &format!("{export}{command}")])
                .current_dir(repository())
                .output()
                .unwrap();
            let said = format!(
                "{command}\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            if command.starts_with("clustermesh init") {
                guard.note(&said);
                assert!(guard.process.is_some(), "init does not say which process it started: {said}");
            }
            assert_eq!(output.status.success(), !block.refused, "{said}");
            if block.refused {
                let last = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                assert!(readme.contains(&last), "the README shows another answer than {last:?}");
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
            Block { commands: vec!["a".into(), "b".into()], refused: false },
            Block { commands: vec!["c".into()], refused: true },
        ]
    );
}
