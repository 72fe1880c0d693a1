//! How a command ends when it does not succeed: one sentence on stderr and an exit code.

use std::process::ExitCode;

use tonic::{Code, Status};

/// Refused or failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong: `EX_USAGE` of sysexits.h, as for the daemons.
pub(crate) const USAGE: u8 = 64;
/// What was asked for does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// A wait ended before its condition held.
pub(crate) const TIMED_OUT: u8 = 4;
/// No majority of the replicas answers: a change was refused, or what was shown is what one of them knew last.
pub(crate) const NO_QUORUM: u8 = 5;
/// Stored, but a data plane refused it.
pub(crate) const REFUSED: u8 = 6;
/// `EX_UNAVAILABLE` of sysexits.h: the control plane can't be reached.
pub(crate) const UNREACHABLE: u8 = 69;

/// How the control plane begins the sentence about it.
const LOST_QUORUM: &str = "no quorum: ";

/// Why a command ends early. An empty sentence prints nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) sentence: String,
}

impl Failure {
    fn new(code: u8, sentence: impl Into<String>) -> Self {
        Self { code, sentence: one_line(&sentence.into()) }
    }

    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self::new(FAILED, sentence)
    }

    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(USAGE, sentence)
    }

    pub(crate) fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(NOT_FOUND, sentence)
    }

    pub(crate) fn timed_out(sentence: impl Into<String>) -> Self {
        Self::new(TIMED_OUT, sentence)
    }

    pub(crate) fn no_quorum(sentence: impl Into<String>) -> Self {
        Self::new(NO_QUORUM, sentence)
    }

    /// If this is the end of a wait: the same with a sentence.
    pub(crate) fn or_timed_out(self, sentence: impl Into<String>) -> Self {
        if self.code == TIMED_OUT { Self::timed_out(sentence) } else { self }
    }

    pub(crate) fn refused(sentence: impl Into<String>) -> Self {
        Self::new(REFUSED, sentence)
    }

    pub(crate) fn unreachable(sentence: impl Into<String>) -> Self {
        Self::new(UNREACHABLE, sentence)
    }

    /// The reader of our output has gone (`| head`): nothing is wrong, and nobody is left to tell.
    pub(crate) fn reader_gone() -> Self {
        Self { code: 0, sentence: String::new() }
    }

    /// Says it on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.sentence.is_empty() {
            eprintln!("clustermesh: {}", self.sentence);
        }
        ExitCode::from(self.code)
    }
}

impl From<Status> for Failure {
    /// The control plane's own sentence, with the code that fits it.
    fn from(status: Status) -> Self {
        let message = status.message();
        let said = if message.is_empty() { format!("{:?}", status.code()) } else { message.to_owned() };
        let lost = message.contains("transport error") || message.contains("h2 protocol error");
        match status.code() {
            Code::Unavailable if message.contains(LOST_QUORUM) => Self::no_quorum(said),
            Code::NotFound => Self::not_found(said),
            Code::DeadlineExceeded => Self::timed_out(said),
            Code::Unavailable => Self::unreachable(format!(
                "the control plane is not available ({said}); see 'clustermesh status' and try again"
            )),
            Code::Unknown | Code::Internal | Code::Cancelled if lost => Self::unreachable(
                "the connection to the control plane broke before it answered; \
                 try again (a repeated apply changes nothing twice)",
            ),
            Code::Unimplemented => Self::failed(format!(
                "this control plane does not know the request ({said}); use a clustermesh of its release"
            )),
            _ => Self::failed(said),
        }
    }
}

/// One line without control characters: the text may come from elsewhere.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    line.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_server_says() {
        let failure = Failure::from(Status::invalid_argument("spec.ports:\n  bad\u{1b}[31m value.\n"));
        assert_eq!(failure, Failure { code: 1, sentence: "spec.ports: bad[31m value".to_owned() });
    }

    #[test]
    fn codes_follow_the_status() {
        assert_eq!(Failure::from(Status::not_found("no such service")).code, NOT_FOUND);
        assert_eq!(Failure::from(Status::deadline_exceeded("late")).code, TIMED_OUT);
        assert_eq!(Failure::from(Status::unavailable("no leader")).code, UNREACHABLE);
        assert_eq!(
            Failure::from(Status::unavailable("no quorum: 1 of 3 replicas reachable")).code,
            NO_QUORUM
        );
        assert_eq!(Failure::from(Status::unknown("transport error")).code, UNREACHABLE);
        assert_eq!(Failure::from(Status::permission_denied("not you")).code, FAILED);
        assert_eq!(Failure::from(Status::new(Code::Aborted, "")).sentence, "Aborted");
    }
}
