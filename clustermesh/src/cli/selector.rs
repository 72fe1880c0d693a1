//! Label selectors, looked at before they are sent.

use super::failure::Failure;

/// Refuses what is no label selector before anything is asked: kubectl's `-l`, so `a=b`, `a==b`, `a!=b`, `a`, `!a`,
/// `a in (b,c)`, `a notin (b,c)`, joined by commas. The control plane evaluates it.
pub(crate) fn check(text: &str) -> Result<(), Failure> {
    if text.trim().is_empty() || split_outside_parentheses(text).into_iter().all(|one| term(one).is_some()) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{text:?} is no label selector; write for instance app=pay,tier!=front or 'env in (a,b)'"
    )))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn term(text: &str) -> Option<()> {
    let text = text.trim();
    if let Some(open) = text.find('(') {
        let (head, list) = text.split_at(open);
        let list = list.strip_prefix('(')?.strip_suffix(')')?;
        list.split(',').try_for_each(value)?;
        let mut words = head.split_whitespace();
        key(words.next()?)?;
        return matches!((words.next()?, words.next()), ("in" | "notin", None)).then_some(());
    }
    let parts = text.split_once("!=").or_else(|| text.split_once("==")).or_else(|| text.split_once('='));
    match parts {
        Some((name, wanted)) => key(name).and_then(|()| value(wanted)),
        None => key(text.strip_prefix('!').unwrap_or(text)),
    }
}

fn key(text: &str) -> Option<()> {
    let text = text.trim();
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    (!text.is_empty() && text.bytes().all(fine)).then_some(())
}

fn value(text: &str) -> Option<()> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.trim().bytes().all(fine).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_takes_is_taken() {
        for text in [
            "",
            "app=pay",
            "app==pay, tier=back",
            "app!=web",
            "app",
            "!env",
            "app in (web, pay)",
            "app notin (web, pay),tier",
        ] {
            assert!(check(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn malformed_selectors_are_usage_errors() {
        for bad in [",", "a=b,", "=b", "a in", "a in b", "a of (b)", "a in (b", "!", "a b", "a=b=c"] {
            assert_eq!(check(bad).unwrap_err().code, crate::cli::failure::USAGE, "{bad}");
        }
    }
}
