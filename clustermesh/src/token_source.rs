//! Where a program finds its join token. An argument is in the process list, for everybody on the machine to see; the
//! environment and files are not.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use thiserror::Error;

use crate::token::MAX_TOKEN;

/// The environment variable in which `control-plane run` and `node-agent run` look for a token.
pub const TOKEN_VARIABLE: &str = "CLUSTERMESH_JOIN_TOKEN";

/// Why a token can't be read.
#[derive(Debug, Error)]
#[error("--join-file {file}: {source}")]
pub struct TokenFileError {
    /// The file, or `-`.
    pub file: String,
    /// What went wrong.
    pub source: io::Error,
}

/// The token of `--join-file`, where `-` is stdin, else the one of `--join` or the environment.
///
/// # Errors
/// The file can't be read, or has more bytes than any token.
pub fn join_token(given: Option<&str>, file: Option<&Path>) -> Result<Option<String>, TokenFileError> {
    let Some(file) = file else { return Ok(given.map(str::to_owned)) };
    let text =
        if file == Path::new("-") { read(io::stdin().lock()) } else { File::open(file).and_then(read) };
    text.map(Some).map_err(|source| TokenFileError { file: file.display().to_string(), source })
}

fn read(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    let limit = MAX_TOKEN as u64 + 2;
    from.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {MAX_TOKEN} bytes: that is no join token")));
    }
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_before_the_argument_and_loses_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "isthmus1.abc\n").unwrap();
        assert_eq!(join_token(Some("x"), Some(&file)).unwrap().as_deref(), Some("isthmus1.abc"));
        assert_eq!(join_token(Some("x"), None).unwrap().as_deref(), Some("x"));
        assert_eq!(join_token(None, None).unwrap(), None);
        std::fs::remove_file(&file).unwrap();
        assert!(join_token(None, Some(&file)).unwrap_err().to_string().contains("--join-file"));
    }

    #[test]
    fn a_file_that_is_no_token_is_not_read_whole() {
        assert!(read(io::repeat(b'x')).unwrap_err().to_string().contains("no join token"));
    }
}
