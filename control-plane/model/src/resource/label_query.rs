//! Label selectors as `-l` spells them: `app=web,tier!=db,env in (a,b),!beta,owner`.

use super::Labels;

/// Longest selector, in bytes, and most requirements in one.
const MAX_BYTES: usize = 4_096;

/// What every selected object's labels fulfil.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelQuery(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl LabelQuery {
    /// Parses the text; an empty one selects everything.
    ///
    /// # Errors
    /// One sentence that names the requirement.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("label selector has {} bytes, {MAX_BYTES} are allowed", text.len()));
        }
        split(text).into_iter().map(requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the labels fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => !labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Splits at commas that are not within parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if parts.len() == 1 && parts[0].trim().is_empty() { Vec::new() } else { parts }
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let part = part.trim();
    let bad = || {
        format!(
            "label selector: {:?} is none of key=value, key!=value, key in (a,b), key, !key",
            part.chars().take(64).collect::<String>()
        )
    };
    let key = |text: &str| {
        let text = text.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !text.is_empty() && text.chars().all(fine) { Ok(text.to_owned()) } else { Err(bad()) }
    };
    let value = |text: &str| {
        let text = text.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.chars().all(fine) { Ok(text.to_owned()) } else { Err(bad()) }
    };
    if let Some((name, list)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let name = name.trim();
        if let Some(name) = name.strip_suffix(" notin") {
            return Ok(Requirement::NotIn(key(name)?, values));
        }
        let name = name.strip_suffix(" in").ok_or_else(bad)?;
        return Ok(Requirement::In(key(name)?, values));
    }
    if let Some((name, text)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, vec![value(text)?]));
    }
    if let Some((name, text)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(name)?, vec![value(text)?]));
    }
    match part.strip_prefix('!') {
        Some(name) => Ok(Requirement::Absent(key(name)?)),
        None => Ok(Requirement::Exists(key(part)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_selects_what_it_says() {
        let labels: Labels =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, selected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=db", true),
            ("app=api", false),
            ("env!=prod", true),
            ("app in (api, web)", true),
            ("tier notin (front)", false),
            ("app", true),
            ("!app", false),
            ("!beta,app in (web),tier", true),
        ] {
            assert_eq!(LabelQuery::parse(text).unwrap().matches(&labels), selected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in ["=web", "a b=c", "app=web,", "app in web)", "x(y)", "a=b c"] {
            let error = LabelQuery::parse(bad).unwrap_err();
            assert!(error.contains("label selector"), "{bad}: {error}");
        }
        assert!(LabelQuery::parse(&"a".repeat(5_000)).is_err());
    }
}
