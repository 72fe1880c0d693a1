//! Label selectors, evaluated here for watches: the control plane filters lists only.

use serde_json::Value;

use super::failure::Failure;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// kubectl's `-l`: `a=b`, `a==b`, `a!=b`, `a`, `!a`, `a in (b,c)`, `a notin (b,c)`, joined by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Term>);

impl Selector {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        split_outside_parentheses(text).into_iter().map(term).collect::<Option<_>>().map(Self).ok_or_else(
            || {
                Failure::usage(format!(
                    "{text:?} is no label selector; write for instance app=pay,tier!=front or 'env in (a,b)'"
                ))
            },
        )
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.0.iter().all(|term| match term {
            Term::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Term::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Term::Exists(key) => label(key).is_some(),
            Term::Missing(key) => label(key).is_none(),
        })
    }
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

fn term(text: &str) -> Option<Term> {
    let text = text.trim();
    if let Some(open) = text.find('(') {
        let (head, list) = text.split_at(open);
        let list = list.strip_prefix('(')?.strip_suffix(')')?;
        let values: Vec<String> = list.split(',').map(value).collect::<Option<_>>()?;
        let mut words = head.split_whitespace();
        let (key, operator) = (key(words.next()?)?, words.next()?);
        return match (operator, words.next()) {
            ("in", None) => Some(Term::In(key, values)),
            ("notin", None) => Some(Term::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some((name, wanted)) = text.split_once("!=") {
        return Some(Term::NotIn(key(name)?, vec![value(wanted)?]));
    }
    if let Some((name, wanted)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Term::In(key(name)?, vec![value(wanted)?]));
    }
    match text.strip_prefix('!') {
        Some(name) => Some(Term::Missing(key(name)?)),
        None => Some(Term::Exists(key(text)?)),
    }
}

fn key(text: &str) -> Option<String> {
    let text = text.trim();
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    (!text.is_empty() && text.bytes().all(fine)).then(|| text.to_owned())
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.bytes().all(fine).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_select_as_kubectls_do() {
        let object = json!({"metadata": {"labels": {"app": "pay", "tier": "back"}}});
        for (text, expected) in [
            ("", true),
            ("app=pay", true),
            ("app==pay, tier=back", true),
            ("app=web", false),
            ("app!=web", true),
            ("env!=prod", true),
            ("app", true),
            ("env", false),
            ("!env", true),
            ("!app", false),
            ("app in (web, pay)", true),
            ("app notin (web, pay),tier", false),
            ("env notin (prod)", true),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        assert!(!Selector::parse("app").unwrap().matches(&json!({})));
    }

    #[test]
    fn malformed_selectors_are_usage_errors() {
        for bad in [",", "a=b,", "=b", "a in", "a in b", "a of (b)", "a in (b", "!", "a b", "a=b=c"] {
            assert_eq!(Selector::parse(bad).unwrap_err().code, crate::cli::failure::USAGE, "{bad}");
        }
    }
}
