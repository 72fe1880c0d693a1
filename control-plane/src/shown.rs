//! What somebody has said, as it is repeated to them or in the log: a request may be large, and a status that does not fit
//! in HTTP/2's headers reaches nobody.

use std::{borrow::Cow, fmt};

/// Bytes of one word or name of a client's.
const MAX_WORD: usize = 80;
/// Bytes of a sentence that has words of a client's in it.
const MAX_SENTENCE: usize = 2_048;

/// A word of a client's, shortened if it is long.
pub fn word(text: &str) -> Cow<'_, str> {
    within(text, MAX_WORD)
}

/// A sentence that may have such words in it.
pub fn sentence(text: impl fmt::Display) -> String {
    let text = text.to_string();
    match within(&text, MAX_SENTENCE) {
        Cow::Owned(short) => short,
        Cow::Borrowed(_) => text,
    }
}

fn within(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let kept = &text[..text.floor_char_boundary(most)];
    format!("{kept}... ({} bytes)", text.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_between_characters_and_says_how_long_it_was() {
        assert_eq!(word("pods"), "pods");
        let long = "é".repeat(1_000_000);
        let shown = word(&long);
        assert!(shown.starts_with(&"é".repeat(40)) && shown.ends_with("... (2000000 bytes)"), "{shown}");
        assert!(shown.len() < 120);
        assert_eq!(sentence("fine"), "fine");
        assert!(sentence(&long).len() < MAX_SENTENCE + 40);
    }
}
