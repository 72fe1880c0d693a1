//! The only place that writes to stdout, and the decision whether to colour it.

use std::io::{self, ErrorKind, IsTerminal, Write};

use owo_colors::{OwoColorize, Style};

use super::failure::Failure;

/// Writes text as it is.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::reader_gone(),
        _ => Failure::failed(format!("cannot write the output: {error}")),
    })
}

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// A remark for people, on stderr: stdout stays clean for pipes.
pub(crate) fn remark(text: &str) {
    eprintln!("{text}");
}

/// Whether a person reads stderr.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether a person reads stdout.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Says on stderr that something takes its time; nothing where stderr is no terminal.
pub(crate) fn spinner(doing: &str) -> indicatif::ProgressBar {
    let spinner = indicatif::ProgressBar::new_spinner().with_message(doing.to_owned());
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner
}

/// How much a piece of text matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
    Faint,
    Heading,
}

/// Paints, or leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paint {
    colour: bool,
}

impl Paint {
    /// Never colours: for files, pipes and tests.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// Colours for a terminal that did not ask for none (<https://no-color.org>).
    pub(crate) fn for_stdout() -> Self {
        Self::decide(
            stdout_is_terminal(),
            std::env::var_os("NO_COLOR").as_deref(),
            std::env::var_os("TERM").as_deref(),
        )
    }

    fn decide(terminal: bool, no_color: Option<&std::ffi::OsStr>, term: Option<&std::ffi::OsStr>) -> Self {
        let refused = no_color.is_some_and(|v| !v.is_empty()) || term.is_some_and(|t| t == "dumb");
        Self { colour: terminal && !refused }
    }

    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let style = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => Style::new().green(),
            Tone::Warning => Style::new().yellow(),
            Tone::Bad => Style::new().red().bold(),
            Tone::Faint => Style::new().dimmed(),
            Tone::Heading => Style::new().bold(),
        };
        text.style(style).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let on = Paint { colour: true };
        assert_eq!(Paint::decide(true, None, None), on);
        assert_eq!(Paint::decide(true, Some(OsStr::new("")), Some(OsStr::new("xterm"))), on);
        assert_eq!(Paint::decide(true, Some(OsStr::new("1")), None), Paint::PLAIN);
        assert_eq!(Paint::decide(true, None, Some(OsStr::new("dumb"))), Paint::PLAIN);
        assert_eq!(Paint::decide(false, None, None), Paint::PLAIN);
        assert_eq!(Paint::PLAIN.paint(Tone::Bad, "DROPPED"), "DROPPED");
        assert!(on.paint(Tone::Bad, "DROPPED").starts_with('\u{1b}'));
    }
}
