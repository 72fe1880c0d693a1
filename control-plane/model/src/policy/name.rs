//! Names and patterns of names, as policies write them: `toFQDNs`, and the names that a pod may ask DNS for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name in DNS, as text without its last dot (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 253;
/// The longest label.
const MAX_LABEL: usize = 63;

/// One name, or those that a pattern holds for.
///
/// | pattern | holds for |
/// | --- | --- |
/// | no star | just this name |
/// | `*` (or several stars, alone) | every name |
/// | `**.` before the rest | names that have one or more whole labels before the rest |
/// | `*` elsewhere | no, one or several characters of one label |
///
/// Names have no last dot and are in lower case; a pattern may be written either way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(Box<str>);

/// What is wrong with a name or a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or just a dot.
    #[error("is empty")]
    Empty,
    /// As a whole, or one label.
    #[error("is too long: {MAX_NAME} characters, {MAX_LABEL} in a label")]
    TooLong,
    /// Two dots, or one at the beginning.
    #[error("has an empty label")]
    EmptyLabel,
    /// Other than letters, digits, `-` and `_` (and `*` in patterns).
    #[error("has the character {0:?}; a-z, 0-9, '-', '_' and '.' are for names, and '*' for patterns")]
    Character(char),
    /// Where just a name may stand.
    #[error("is a pattern; a name is wanted")]
    Pattern,
    /// `a**.example.com`: in Cilium this means one star.
    #[error("has '**' in a label; it stands alone, or alone before the first dot")]
    TwoStars,
}

impl NamePattern {
    /// One name.
    ///
    /// # Errors
    /// It is none.
    pub fn exact(text: &str) -> Result<Self, NameError> {
        if text.contains('*') {
            return Err(NameError::Pattern);
        }
        Self::parse(text)
    }

    /// A name or a pattern.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.bytes().all(|byte| byte == b'*') {
            return Ok(Self("*".into()));
        }
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*');
        if let Some(other) = text.chars().find(|c| !allowed(c)) {
            return Err(NameError::Character(other));
        }
        for (i, label) in text.split('.').enumerate() {
            if label.is_empty() {
                return Err(NameError::EmptyLabel);
            }
            if label.len() > MAX_LABEL {
                return Err(NameError::TooLong);
            }
            if label.contains("**") && !(i == 0 && label == "**") {
                return Err(NameError::TwoStars);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// As it was written, in lower case and without the last dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether it holds for a name in lower case without a last dot.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let pattern = &*self.0;
        if pattern == "*" {
            return true;
        }
        if let Some(rest) = pattern.strip_prefix("**.") {
            // One whole label or more, then as many labels as the rest has.
            let dots = rest.matches('.').count() + 1;
            return name
                .rmatch_indices('.')
                .nth(dots - 1)
                .is_some_and(|(dot, _)| dot > 0 && labels_match(rest, &name[dot + 1..]));
        }
        labels_match(pattern, name)
    }
}

fn labels_match(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if label_matches(pattern.as_bytes(), label.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// The latest star takes one character more whenever what follows it does not fit: no more steps than the product of
/// both lengths.
fn label_matches(pattern: &[u8], label: &[u8]) -> bool {
    let (mut p, mut l) = (0, 0);
    let mut star = None;
    while l < label.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, l));
                p += 1;
            }
            Some(byte) if *byte == label[l] => {
                p += 1;
                l += 1;
            }
            _ => match star {
                None => return false,
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    l = taken + 1;
                }
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        NamePattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn a_name_is_itself_whatever_its_case_and_its_last_dot() {
        assert!(matches("API.Example.com.", "api.example.com"));
        assert!(!matches("example.com", "www.example.com"));
        assert!(!matches("www.example.com", "example.com"));
        assert!(!matches("example.com", "example.com.evil.test"));
    }

    #[test]
    fn a_star_stays_within_its_label() {
        assert!(matches("*.example.com", "www.example.com"));
        assert!(!matches("*.example.com", "a.b.example.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(matches("sub*.example.com", "sub.example.com"));
        assert!(matches("sub*.example.com", "subway.example.com"));
        assert!(matches("a*b*c.test", "a-b-bc.test"));
        assert!(!matches("a*b*c.test", "a-c.test"));
        assert!(matches("db-*-eu.*.test", "db-7-eu.x.test"));
    }

    #[test]
    fn a_star_alone_is_every_name() {
        for pattern in ["*", "**", "***."] {
            assert!(
                matches(pattern, "a.b.c") && matches(pattern, "") && matches(pattern, "com"),
                "{pattern}"
            );
        }
    }

    #[test]
    fn two_stars_before_the_rest_are_one_or_more_labels() {
        assert!(matches("**.example.com", "www.example.com"));
        assert!(matches("**.example.com", "a.b.example.com"));
        assert!(!matches("**.example.com", "example.com"));
        assert!(!matches("**.example.com", "notexample.com"));
        assert!(matches("**.s*.test", "a.b.six.test"));
        assert!(!matches("**.s*.test", "six.test"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert_eq!(NamePattern::parse(""), Err(NameError::Empty));
        assert_eq!(NamePattern::parse("."), Err(NameError::Empty));
        assert_eq!(NamePattern::parse("a..b"), Err(NameError::EmptyLabel));
        assert_eq!(NamePattern::parse(".a"), Err(NameError::EmptyLabel));
        assert_eq!(NamePattern::parse("a b"), Err(NameError::Character(' ')));
        assert_eq!(NamePattern::parse("bücher.test"), Err(NameError::Character('ü')));
        assert_eq!(NamePattern::parse(&"a".repeat(64)), Err(NameError::TooLong));
        assert_eq!(NamePattern::parse(&["abc"; 64].join(".")), Err(NameError::TooLong));
        assert_eq!(NamePattern::parse("a**.test"), Err(NameError::TwoStars));
        assert_eq!(NamePattern::parse("a.**.test"), Err(NameError::TwoStars));
        assert_eq!(NamePattern::exact("*.test"), Err(NameError::Pattern));
        assert!(NamePattern::exact("a.test").unwrap().is_exact());
    }

    /// The same by a regular expression, as Cilium does it.
    fn reference(pattern: &str, name: &str) -> bool {
        let (prefix, rest) = match pattern.strip_prefix("**.") {
            Some(rest) => (r"([-a-z0-9_]+\.)+", rest),
            None => ("", pattern),
        };
        let rest = rest.replace('.', r"\.").replace('*', "[-a-z0-9_]*");
        regex::Regex::new(&format!("^{prefix}{rest}$")).unwrap().is_match(name)
    }

    proptest! {
        #[test]
        fn it_holds_for_what_the_regular_expression_holds_for(
            pattern in r"(\*\*\.)?[ab*]{1,4}(\.[ab*]{1,3}){0,2}",
            name in r"[ab]{1,4}(\.[ab]{1,3}){0,3}",
        ) {
            if let Ok(parsed) = NamePattern::parse(&pattern)
                && parsed.as_str() != "*"
            {
                prop_assert_eq!(parsed.matches(&name), reference(&pattern, &name), "{} {}", pattern, name);
            }
        }
    }
}
