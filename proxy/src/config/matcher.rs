//! String matchers, shared by routes and certificates.

use regex::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};
use xds_proto::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use super::{
    error::Path,
    wire::{Result, refuse},
};

/// Largest compiled expression, in bytes: a pattern from the network must not take the memory of the process.
const MAX_REGEX_BYTES: usize = 256 * 1024;

/// An expression that must match the whole text, as RE2's full match in Envoy. Runs in linear time.
#[derive(Debug, Clone)]
pub struct FullRegex {
    source: String,
    regex: Regex,
}

impl FullRegex {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, or that it is too large.
    pub fn new(source: &str) -> std::result::Result<Self, String> {
        let regex =
            RegexBuilder::new(&format!("^(?:{source})$")).size_limit(MAX_REGEX_BYTES).build().map_err(
                |e| format!("is no expression: {}", e.to_string().lines().last().unwrap_or_default().trim()),
            )?;
        Ok(Self { source: source.to_owned(), regex })
    }

    /// Whether the whole text matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for FullRegex {}

impl Serialize for FullRegex {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

/// An expression, and what its matches become (`RegexMatchAndSubstitute`).
#[derive(Debug, Clone, Serialize)]
pub struct Substitution {
    pattern: String,
    substitution: String,
    #[serde(skip)]
    regex: Regex,
    /// The substitution in the words of the library.
    #[serde(skip)]
    replacement: String,
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.substitution) == (&other.pattern, &other.substitution)
    }
}

impl Substitution {
    /// With RE2's `\1` for the first group and so on.
    ///
    /// # Errors
    /// What is wrong with the expression, or with the groups that the substitution names.
    pub fn new(pattern: &str, substitution: &str) -> std::result::Result<Self, String> {
        let regex = RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build().map_err(|e| {
            format!("is no expression: {}", e.to_string().lines().last().unwrap_or_default().trim())
        })?;
        let mut replacement = String::new();
        let mut chars = substitution.chars();
        while let Some(char) = chars.next() {
            match char {
                '$' => replacement.push_str("$$"),
                '\\' => match chars.next() {
                    Some('\\') => replacement.push('\\'),
                    Some(digit) => match digit.to_digit(10) {
                        Some(group) if (group as usize) < regex.captures_len() => {
                            replacement.push_str(&format!("${{{group}}}"));
                        }
                        _ => return Err(format!("has no group for \\{digit}")),
                    },
                    None => return Err("ends with a backslash".to_owned()),
                },
                other => replacement.push(other),
            }
        }
        Ok(Self { pattern: pattern.to_owned(), substitution: substitution.to_owned(), regex, replacement })
    }

    /// The text with every match replaced.
    pub fn apply(&self, text: &str) -> String {
        self.regex.replace_all(text, self.replacement.as_str()).into_owned()
    }
}

pub(crate) fn substitution(path: &Path<'_>, wire: RegexMatchAndSubstitute) -> Result<Substitution> {
    let RegexMatchAndSubstitute { pattern, substitution } = wire;
    let pattern_path = path.field("pattern");
    let RegexMatcher { regex, engine_type: _ } = pattern.ok_or_else(|| pattern_path.missing())?;
    if regex.is_empty() {
        return Err(pattern_path.field("regex").missing());
    }
    Substitution::new(&regex, &substitution).map_err(|reason| path.invalid(&regex, reason))
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Has it somewhere.
    Contains(String),
    /// Matches as a whole.
    Regex(FullRegex),
    /// Is a whole number from the first, and below the second.
    Range(i64, i64),
}

/// A comparison, with or without regard to ASCII case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text {
    /// The comparison. Patterns are lower case where `ignore_case`.
    pub pattern: TextMatch,
    /// Compare in lower case. Has no effect on a regular expression.
    pub ignore_case: bool,
}

impl Text {
    /// A case-sensitive comparison.
    pub fn new(pattern: TextMatch) -> Self {
        Self { pattern, ignore_case: false }
    }

    /// Whether the text fits.
    pub fn matches(&self, text: &str) -> bool {
        if self.ignore_case && !matches!(self.pattern, TextMatch::Regex(_)) {
            return self.pattern.matches(&text.to_ascii_lowercase());
        }
        self.pattern.matches(text)
    }
}

impl Text {
    /// Whether the pattern is exactly this text.
    pub fn is_exactly(&self, text: &str) -> bool {
        matches!(&self.pattern, TextMatch::Exact(pattern) if pattern == text)
    }
}

impl TextMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(pattern) => text == pattern,
            Self::Prefix(pattern) => text.starts_with(pattern.as_str()),
            Self::Suffix(pattern) => text.ends_with(pattern.as_str()),
            Self::Contains(pattern) => text.contains(pattern.as_str()),
            Self::Regex(regex) => regex.is_match(text),
            Self::Range(first, end) => text.parse().is_ok_and(|number: i64| (*first..*end).contains(&number)),
        }
    }
}

pub(crate) fn regex(path: &Path<'_>, wire: RegexMatcher) -> Result<FullRegex> {
    // The engine is a hint that Envoy deprecated; RE2's syntax is what is read.
    let RegexMatcher { regex, engine_type: _ } = wire;
    if regex.is_empty() {
        return Err(path.field("regex").missing());
    }
    FullRegex::new(&regex).map_err(|reason| path.field("regex").invalid(&regex, reason))
}

pub(crate) fn text(path: &Path<'_>, wire: StringMatcher) -> Result<Text> {
    let StringMatcher { ignore_case, match_pattern } = wire;
    let fold = |s: String| if ignore_case { s.to_ascii_lowercase() } else { s };
    let nonempty =
        |field: &str, s: String| if s.is_empty() { Err(path.field(field).missing()) } else { Ok(fold(s)) };
    let pattern = match match_pattern.ok_or_else(|| path.missing())? {
        MatchPattern::Exact(s) => TextMatch::Exact(fold(s)),
        MatchPattern::Prefix(s) => TextMatch::Prefix(nonempty("prefix", s)?),
        MatchPattern::Suffix(s) => TextMatch::Suffix(nonempty("suffix", s)?),
        MatchPattern::Contains(s) => TextMatch::Contains(nonempty("contains", s)?),
        MatchPattern::SafeRegex(r) => {
            let path = path.field("safe_regex");
            refuse!(path; ignore_case);
            TextMatch::Regex(regex(&path, r)?)
        }
        MatchPattern::Custom(_) => return Err(path.field("custom").unsupported()),
    };
    Ok(Text { pattern, ignore_case })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_must_match_the_whole_text() {
        let regex = FullRegex::new("a|bc").unwrap();
        assert!(regex.is_match("a") && regex.is_match("bc"));
        assert!(!regex.is_match("ab") && !regex.is_match("xbc"));
    }

    #[test]
    fn an_expression_that_would_take_much_memory_is_refused() {
        assert!(FullRegex::new("(?:a{1000}){1000}").is_err());
        assert!(FullRegex::new("(").is_err());
    }

    #[test]
    fn matches_are_replaced_with_their_groups() {
        let swap = Substitution::new("^/service/([^/]+)(/.*)$", r"\2/instance/\1").unwrap();
        assert_eq!(swap.apply("/service/foo/v1/api"), "/v1/api/instance/foo");
        assert_eq!(Substitution::new("one", "$1").unwrap().apply("/xxx/one/one"), "/xxx/$1/$1");
        assert!(Substitution::new("(a)", r"\2").is_err() && Substitution::new("(", "").is_err());
        assert!(Substitution::new("a", "\\").is_err());
    }

    #[test]
    fn case_is_ignored_only_when_asked_for() {
        let path = Path::ROOT;
        let wire = |ignore_case| StringMatcher {
            ignore_case,
            match_pattern: Some(MatchPattern::Prefix("Ab".into())),
        };
        assert!(text(&path, wire(true)).unwrap().matches("aBc"));
        assert!(!text(&path, wire(false)).unwrap().matches("aBc"));
    }
}
