//! `NodeMatcher`: which clients a request is about. Checked when the request comes in, so that matching can't fail.

use regex::{Regex, RegexBuilder};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        r#type::matcher::v3::{
            NodeMatcher, StringMatcher, StructMatcher, ValueMatcher, double_matcher, list_matcher,
            string_matcher::MatchPattern, struct_matcher::path_segment::Segment, value_matcher,
        },
    },
    google::protobuf::{Value, value::Kind},
};

/// Matchers in one request.
const MAX_MATCHERS: usize = 100;
/// Nested matchers of values.
const MAX_DEPTH: usize = 8;
/// Regular expressions in one request: each is compiled, and tried on every client.
const MAX_REGEXES: usize = 16;
/// Memory of one compiled regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 256 << 10;

/// What a matcher can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// See the limit.
    #[error("node_matchers has {0} entries, {MAX_MATCHERS} are allowed")]
    TooMany(usize),
    /// A oneof without a value.
    #[error("node_matchers[{0}]: {1} is empty")]
    Empty(usize, &'static str),
    /// See the limit.
    #[error("node_matchers has more than {MAX_REGEXES} regular expressions")]
    TooManyRegexes,
    /// Does not compile, or would be too large.
    #[error("node_matchers[{0}]: safe_regex.regex: {1}")]
    Regex(usize, String),
    /// See the limit.
    #[error("node_matchers[{0}]: values are nested deeper than {MAX_DEPTH}")]
    TooDeep(usize),
    /// An extension that is not there.
    #[error("node_matchers[{0}]: {1} is not supported")]
    Unsupported(usize, &'static str),
}

/// The matchers of a request: a client is meant if any of them matches, or if there are none.
#[derive(Debug, Default)]
pub struct Matchers(Vec<Matcher>);

#[derive(Debug)]
struct Matcher {
    id: Option<Text>,
    metadata: Vec<(Vec<String>, Test)>,
}

#[derive(Debug)]
enum Text {
    Exact(String, bool),
    Prefix(String, bool),
    Suffix(String, bool),
    Contains(String, bool),
    Regex(Regex),
}

#[derive(Debug)]
enum Test {
    Null,
    Number(f64, f64),
    Text(Text),
    Bool(bool),
    Present(bool),
    OneOf(Box<Test>),
    Any(Vec<Test>),
}

impl Matchers {
    /// Checks a request's matchers.
    pub fn new(matchers: Vec<NodeMatcher>) -> Result<Self, MatcherError> {
        if matchers.len() > MAX_MATCHERS {
            return Err(MatcherError::TooMany(matchers.len()));
        }
        let mut regexes = 0;
        matchers
            .into_iter()
            .enumerate()
            .map(|(at, matcher)| Checked { at, regexes: &mut regexes }.one(matcher))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a client is meant: by the id that it gave itself, or by the one that was authorized.
    pub fn matches(&self, node: &Node, authorized: &str) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|matcher| {
                matcher.id.as_ref().is_none_or(|id| id.matches(&node.id) || id.matches(authorized))
                    && matcher.metadata.iter().all(|(path, test)| test.matches(at(node, path)))
            })
    }
}

/// The value at the end of a path in a node's metadata.
fn at<'a>(node: &'a Node, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let mut value = node.metadata.as_ref()?.fields.get(first)?;
    for key in rest {
        let Some(Kind::StructValue(fields)) = &value.kind else { return None };
        value = fields.fields.get(key)?;
    }
    Some(value)
}

/// What is checked: the matcher at this place, and so many regular expressions so far.
struct Checked<'a> {
    at: usize,
    regexes: &'a mut usize,
}

impl Checked<'_> {
    fn one(&mut self, matcher: NodeMatcher) -> Result<Matcher, MatcherError> {
        let id = matcher.node_id.map(|id| self.text(id)).transpose()?;
        let metadata = matcher.node_metadatas.into_iter().map(|matcher| self.structure(matcher));
        Ok(Matcher { id, metadata: metadata.collect::<Result<_, _>>()? })
    }

    fn structure(&mut self, matcher: StructMatcher) -> Result<(Vec<String>, Test), MatcherError> {
        let at = self.at;
        let path: Vec<String> = matcher
            .path
            .into_iter()
            .map(|segment| match segment.segment {
                Some(Segment::Key(key)) => Ok(key),
                None => Err(MatcherError::Empty(at, "path.segment")),
            })
            .collect::<Result<_, _>>()?;
        if path.is_empty() {
            return Err(MatcherError::Empty(at, "path"));
        }
        Ok((path, self.value(matcher.value.ok_or(MatcherError::Empty(at, "value"))?, MAX_DEPTH)?))
    }

    fn value(&mut self, matcher: ValueMatcher, depth: usize) -> Result<Test, MatcherError> {
        use value_matcher::MatchPattern as P;
        let at = self.at;
        let depth = depth.checked_sub(1).ok_or(MatcherError::TooDeep(at))?;
        Ok(match matcher.match_pattern.ok_or(MatcherError::Empty(at, "match_pattern"))? {
            P::NullMatch(_) => Test::Null,
            P::DoubleMatch(number) => match number.match_pattern {
                Some(double_matcher::MatchPattern::Exact(exact)) => Test::Number(exact, exact),
                // Half open in Envoy.
                Some(double_matcher::MatchPattern::Range(range)) => {
                    Test::Number(range.start, range.end.next_down())
                }
                None => return Err(MatcherError::Empty(at, "double_match")),
            },
            P::StringMatch(string) => Test::Text(self.text(string)?),
            P::BoolMatch(wanted) => Test::Bool(wanted),
            P::PresentMatch(wanted) => Test::Present(wanted),
            P::ListMatch(list) => match list.match_pattern {
                Some(list_matcher::MatchPattern::OneOf(of)) => Test::OneOf(Box::new(self.value(*of, depth)?)),
                None => return Err(MatcherError::Empty(at, "list_match")),
            },
            P::OrMatch(any) => {
                if any.value_matchers.len() > MAX_MATCHERS {
                    return Err(MatcherError::TooMany(any.value_matchers.len()));
                }
                let tests = any.value_matchers.into_iter().map(|matcher| self.value(matcher, depth));
                Test::Any(tests.collect::<Result<_, _>>()?)
            }
        })
    }

    fn text(&mut self, matcher: StringMatcher) -> Result<Text, MatcherError> {
        let fold = matcher.ignore_case;
        let folded = |text: String| if fold { text.to_lowercase() } else { text };
        Ok(match matcher.match_pattern.ok_or(MatcherError::Empty(self.at, "match_pattern"))? {
            MatchPattern::Exact(text) => Text::Exact(folded(text), fold),
            MatchPattern::Prefix(text) => Text::Prefix(folded(text), fold),
            MatchPattern::Suffix(text) => Text::Suffix(folded(text), fold),
            MatchPattern::Contains(text) => Text::Contains(folded(text), fold),
            MatchPattern::SafeRegex(regex) => Text::Regex(self.regex(&regex.regex)?),
            MatchPattern::Custom(_) => return Err(MatcherError::Unsupported(self.at, "custom")),
        })
    }

    fn regex(&mut self, pattern: &str) -> Result<Regex, MatcherError> {
        *self.regexes += 1;
        if *self.regexes > MAX_REGEXES {
            return Err(MatcherError::TooManyRegexes);
        }
        // As RE2 does it here: the whole text must match.
        let whole = format!("^(?:{pattern})$");
        let compiled =
            RegexBuilder::new(&whole).size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build();
        compiled.map_err(|error| MatcherError::Regex(self.at, error.to_string()))
    }
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        let folded = |fold: &bool| if *fold { text.to_lowercase() } else { text.to_owned() };
        match self {
            Self::Exact(wanted, fold) => folded(fold) == *wanted,
            Self::Prefix(wanted, fold) => folded(fold).starts_with(wanted),
            Self::Suffix(wanted, fold) => folded(fold).ends_with(wanted),
            Self::Contains(wanted, fold) => folded(fold).contains(wanted),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

impl Test {
    fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|value| value.kind.as_ref());
        match (self, kind) {
            (Self::Present(wanted), kind) => kind.is_some() == *wanted,
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Number(from, to), Some(Kind::NumberValue(number))) => from <= number && number <= to,
            (Self::Text(text), Some(Kind::StringValue(value))) => text.matches(value),
            (Self::Bool(wanted), Some(Kind::BoolValue(value))) => wanted == value,
            (Self::OneOf(test), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|value| test.matches(Some(value)))
            }
            (Self::Any(tests), _) => tests.iter().any(|test| test.matches(value)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use xds_proto::{
        envoy::r#type::matcher::v3::{
            ListMatcher, OrMatcher, RegexMatcher, list_matcher::MatchPattern as ListPattern,
            struct_matcher::PathSegment,
        },
        google::protobuf::{ListValue, Struct},
    };

    use super::*;

    fn string(pattern: MatchPattern) -> StringMatcher {
        StringMatcher { match_pattern: Some(pattern), ignore_case: false }
    }

    fn by_id(pattern: MatchPattern) -> NodeMatcher {
        NodeMatcher { node_id: Some(string(pattern)), node_metadatas: vec![] }
    }

    fn by_metadata(path: &[&str], pattern: value_matcher::MatchPattern) -> NodeMatcher {
        let path =
            path.iter().map(|key| PathSegment { segment: Some(Segment::Key((*key).into())) }).collect();
        let value = Some(ValueMatcher { match_pattern: Some(pattern) });
        NodeMatcher { node_id: None, node_metadatas: vec![StructMatcher { path, value }] }
    }

    fn node() -> Node {
        let value = |kind| Value { kind: Some(kind) };
        let inner = Struct { fields: [("tier".into(), value(Kind::StringValue("gold".into())))].into() };
        let list = ListValue { values: vec![value(Kind::BoolValue(true)), value(Kind::NumberValue(7.0))] };
        let fields = [
            ("labels".into(), value(Kind::StructValue(inner))),
            ("list".into(), value(Kind::ListValue(list))),
        ];
        Node {
            id: "sidecar~7".into(),
            metadata: Some(Struct { fields: fields.into() }),
            ..Default::default()
        }
    }

    fn meant(matchers: Vec<NodeMatcher>) -> bool {
        Matchers::new(matchers).unwrap().matches(&node(), "envoy~shop/web")
    }

    #[test]
    fn no_matcher_means_everybody_and_several_mean_any() {
        assert!(meant(vec![]));
        let other = by_id(MatchPattern::Exact("other".into()));
        assert!(!meant(vec![other.clone()]));
        assert!(meant(vec![other, by_id(MatchPattern::Exact("sidecar~7".into()))]));
    }

    #[test]
    fn an_id_is_the_claimed_or_the_authorized_one() {
        assert!(meant(vec![by_id(MatchPattern::Exact("envoy~shop/web".into()))]));
        assert!(meant(vec![by_id(MatchPattern::Prefix("envoy~shop/".into()))]));
        assert!(meant(vec![by_id(MatchPattern::Suffix("~7".into()))]));
        assert!(meant(vec![by_id(MatchPattern::Contains("car".into()))]));
        let regex = |text: &str| {
            by_id(MatchPattern::SafeRegex(RegexMatcher { regex: text.into(), ..Default::default() }))
        };
        assert!(meant(vec![regex("envoy~.*/web")]));
        assert!(!meant(vec![regex("envoy")]), "the whole id must match");
        let mut folded = string(MatchPattern::Exact("SIDECAR~7".into()));
        folded.ignore_case = true;
        assert!(meant(vec![NodeMatcher { node_id: Some(folded), node_metadatas: vec![] }]));
    }

    #[test]
    fn metadata_is_matched_by_path() {
        use value_matcher::MatchPattern as P;
        let gold = P::StringMatch(string(MatchPattern::Exact("gold".into())));
        assert!(meant(vec![by_metadata(&["labels", "tier"], gold.clone())]));
        assert!(!meant(vec![by_metadata(&["labels", "tier", "deeper"], gold.clone())]));
        assert!(meant(vec![by_metadata(&["nothing"], P::PresentMatch(false))]));
        let seven = ValueMatcher {
            match_pattern: Some(P::DoubleMatch(xds_proto::envoy::r#type::matcher::v3::DoubleMatcher {
                match_pattern: Some(double_matcher::MatchPattern::Exact(7.0)),
            })),
        };
        let list = ListMatcher { match_pattern: Some(ListPattern::OneOf(Box::new(seven))) };
        assert!(meant(vec![by_metadata(&["list"], P::ListMatch(Box::new(list)))]));
        let either = OrMatcher { value_matchers: vec![ValueMatcher { match_pattern: Some(gold) }] };
        assert!(meant(vec![by_metadata(&["labels", "tier"], P::OrMatch(either))]));
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_its_place() {
        let refused = |matcher: NodeMatcher| {
            Matchers::new(vec![by_id(MatchPattern::Exact("a".into())), matcher]).unwrap_err()
        };
        let empty = NodeMatcher { node_id: Some(StringMatcher::default()), node_metadatas: vec![] };
        assert_eq!(refused(empty), MatcherError::Empty(1, "match_pattern"));
        let regex = |text: &str| {
            by_id(MatchPattern::SafeRegex(RegexMatcher { regex: text.into(), ..Default::default() }))
        };
        assert!(matches!(refused(regex("(")), MatcherError::Regex(1, _)));
        assert!(matches!(refused(regex("(a{1000}){1000}")), MatcherError::Regex(1, _)));
        assert!(Matchers::new(vec![regex("[\\w-]+~[\\w./-]+"); MAX_REGEXES]).is_ok());
        let many = Matchers::new(vec![regex("a"); MAX_REGEXES + 1]).unwrap_err();
        assert_eq!(many, MatcherError::TooManyRegexes);
        let mut deep = value_matcher::MatchPattern::PresentMatch(true);
        for _ in 0..MAX_DEPTH {
            let matcher = ValueMatcher { match_pattern: Some(deep) };
            deep = value_matcher::MatchPattern::OrMatch(OrMatcher { value_matchers: vec![matcher] });
        }
        assert_eq!(refused(by_metadata(&["a"], deep)), MatcherError::TooDeep(1));
        assert_eq!(Matchers::new(vec![NodeMatcher::default(); 101]).unwrap_err(), MatcherError::TooMany(101));
    }
}
