//! What filters have found out about a request (Envoy's dynamic metadata), and conditions on it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::Text;

/// Values by namespace, which is mostly the name of the filter that put them there.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata(BTreeMap<String, Map<String, Value>>);

impl Metadata {
    /// Sets values of a namespace; others of that namespace stay.
    pub fn extend(&mut self, namespace: &str, values: impl IntoIterator<Item = (String, Value)>) {
        self.0.entry(namespace.to_owned()).or_default().extend(values);
    }

    /// All values of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.get(name)
    }

    fn find(&self, namespace: &str, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let mut value = self.0.get(namespace)?.get(first)?;
        for key in rest {
            value = value.as_object()?.get(key)?;
        }
        Some(value)
    }
}

/// `envoy.type.matcher.v3.MetadataMatcher`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetadataTest {
    /// See [`Metadata`].
    pub namespace: String,
    /// Keys from there inwards; at least one.
    pub path: Vec<String>,
    /// The comparison.
    pub value: ValueTest,
    /// Negates the outcome.
    pub invert: bool,
}

/// `envoy.type.matcher.v3.ValueMatcher`. What is not there fits only `Present(false)`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueTest {
    /// It is null.
    Null,
    /// It is this number.
    Number(f64),
    /// It is a number from the first, and below the second.
    Range(f64, f64),
    /// It is a text that fits.
    Text(Text),
    /// It is this.
    Bool(bool),
    /// Whether it is there.
    Present(bool),
    /// It is a list, and one of its elements fits.
    Element(Box<Self>),
    /// It fits one of these.
    Or(Vec<Self>),
}

impl MetadataTest {
    /// Whether the condition holds.
    pub fn holds(&self, metadata: Option<&Metadata>) -> bool {
        let value = metadata.and_then(|metadata| metadata.find(&self.namespace, &self.path));
        self.value.holds(value) != self.invert
    }
}

impl MetadataTest {
    /// The text or number that is there, without any comparison.
    pub fn text(&self, metadata: &Metadata) -> Option<String> {
        match metadata.find(&self.namespace, &self.path)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl ValueTest {
    fn holds(&self, value: Option<&Value>) -> bool {
        let number = || value.and_then(Value::as_f64);
        match self {
            Self::Null => value.is_some_and(Value::is_null),
            Self::Number(wanted) => number().is_some_and(|number| number == *wanted),
            Self::Range(first, end) => number().is_some_and(|number| number >= *first && number < *end),
            Self::Text(text) => value.and_then(Value::as_str).is_some_and(|value| text.matches(value)),
            Self::Bool(wanted) => value.and_then(Value::as_bool) == Some(*wanted),
            Self::Present(wanted) => value.is_some() == *wanted,
            Self::Element(test) => {
                value.and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| test.holds(Some(one))))
            }
            Self::Or(tests) => tests.iter().any(|test| test.holds(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::TextMatch;

    #[test]
    fn values_are_compared_by_their_kind_and_missing_ones_fit_nothing() {
        let mut metadata = Metadata::default();
        let claims = json!({"p": {"sub": "web", "groups": ["a", "b"], "n": 5, "ok": true, "none": null}});
        metadata.extend("jwt", claims.as_object().unwrap().clone());
        let text = |text: &str| ValueTest::Text(Text::new(TextMatch::Exact(text.into())));
        let element = |test| ValueTest::Element(Box::new(test));
        let holds = |path: &[&str], value: ValueTest, invert| {
            let path = path.iter().map(|key| (*key).to_owned()).collect();
            MetadataTest { namespace: "jwt".into(), path, value, invert }.holds(Some(&metadata))
        };
        for (path, value, expected) in [
            (&["p", "sub"][..], text("web"), true),
            (&["p", "sub"], text("we"), false),
            (&["p", "sub", "x"], text("web"), false),
            (&["p", "groups"], text("a"), false),
            (&["p", "groups"], element(text("b")), true),
            (&["p", "groups"], ValueTest::Or(vec![text("b"), element(text("b"))]), true),
            (&["p", "sub"], element(text("web")), false),
            (&["p", "n"], ValueTest::Number(5.0), true),
            (&["p", "n"], ValueTest::Range(4.0, 5.0), false),
            (&["p", "ok"], ValueTest::Bool(true), true),
            (&["p", "none"], ValueTest::Null, true),
            (&["p", "none"], ValueTest::Present(true), true),
            (&["p", "nobody"], ValueTest::Null, false),
            (&["p", "nobody"], ValueTest::Present(false), true),
        ] {
            assert_eq!(holds(path, value.clone(), false), expected, "{path:?} {value:?}");
            assert_eq!(holds(path, value, true), !expected, "{path:?}");
        }
        let test =
            MetadataTest { namespace: "x".into(), path: vec!["p".into()], value: text("a"), invert: false };
        assert!(!test.holds(None) && !test.holds(Some(&metadata)));
    }
}
