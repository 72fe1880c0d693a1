//! Headers that a route adds and removes.

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};
use serde::{Serialize, Serializer};

use crate::format::{Facts, Format};

/// What to do when the header is there already (`HeaderValueOption.append_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExisting {
    /// Add a further value, or the first.
    Append,
    /// Keep what is there.
    Keep,
    /// Replace every value, or add the first.
    Overwrite,
    /// Replace, and do nothing when there is none.
    OverwriteOnly,
}

/// The value of a header that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Always the same.
    Literal(#[serde(serialize_with = "value")] HeaderValue),
    /// With what is known of the request.
    Format(Format),
}

impl Value {
    /// `None`: there is nothing to set.
    fn of(&self, facts: &Facts<'_>) -> Option<HeaderValue> {
        match self {
            Self::Literal(value) => Some(value.clone()),
            // What comes from a client may not be a value of a header.
            Self::Format(format) => {
                let text = format.write(facts, "");
                HeaderValue::from_bytes(text.as_bytes()).ok().filter(|value| !value.is_empty())
            }
        }
    }
}

/// One header to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeaderChange {
    /// Lower case, as everywhere.
    #[serde(serialize_with = "name")]
    pub name: HeaderName,
    /// What it is set to.
    pub value: Value,
    /// See [`OnExisting`].
    pub on_existing: OnExisting,
}

/// Everything that is done to the headers of one message: removals first, then additions in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HeaderOps {
    /// Names to remove.
    #[serde(serialize_with = "names")]
    pub remove: Vec<HeaderName>,
    /// Headers to set.
    pub set: Vec<HeaderChange>,
}

impl HeaderOps {
    /// What is to be set, in the order of `set`. As in Envoy, all of it is read before anything is changed.
    pub fn values(&self, facts: &Facts<'_>) -> Vec<Option<HeaderValue>> {
        self.set.iter().map(|change| change.value.of(facts)).collect()
    }

    /// Whether any value asks for the head of the request.
    pub fn reads_request(&self) -> bool {
        self.set.iter().any(|change| match &change.value {
            Value::Literal(_) => false,
            Value::Format(format) => format.reads_request(),
        })
    }

    /// Does it, with the `values` of [`Self::values`].
    pub fn apply(&self, headers: &mut HeaderMap, values: Vec<Option<HeaderValue>>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (change, value) in self.set.iter().zip(values) {
            let Some(value) = value else { continue };
            match (headers.entry(&change.name), change.on_existing) {
                (Entry::Vacant(_), OnExisting::OverwriteOnly) | (Entry::Occupied(_), OnExisting::Keep) => {}
                (Entry::Vacant(entry), _) => {
                    entry.insert(value);
                }
                (Entry::Occupied(mut entry), OnExisting::Append) => entry.append(value),
                (Entry::Occupied(mut entry), _) => {
                    entry.insert(value);
                }
            }
        }
    }

    /// These, then those of the next, less specific level.
    pub fn then(&self, next: &Self) -> Self {
        Self {
            remove: self.remove.iter().chain(&next.remove).cloned().collect(),
            set: self.set.iter().chain(&next.set).cloned().collect(),
        }
    }
}

fn name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn names<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}

fn value<S: Serializer>(value: &HeaderValue, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(on_existing: OnExisting) -> HeaderOps {
        let set = vec![HeaderChange {
            name: HeaderName::from_static("x-a"),
            value: Value::Literal(HeaderValue::from_static("new")),
            on_existing,
        }];
        HeaderOps { remove: vec![], set }
    }

    #[test]
    fn each_append_action_does_what_envoy_says() {
        for (action, with, without) in [
            (OnExisting::Append, vec!["old", "new"], vec!["new"]),
            (OnExisting::Keep, vec!["old"], vec!["new"]),
            (OnExisting::Overwrite, vec!["new"], vec!["new"]),
            (OnExisting::OverwriteOnly, vec!["new"], vec![]),
        ] {
            for (existing, expected) in [(Some("old"), with), (None, without)] {
                let mut headers = HeaderMap::new();
                if let Some(value) = existing {
                    headers.insert("x-a", HeaderValue::from_static(value));
                }
                let ops = change(action);
                ops.apply(&mut headers, ops.values(&Facts::default()));
                let found: Vec<_> = headers.get_all("x-a").iter().map(|v| v.to_str().unwrap()).collect();
                assert_eq!(found, expected, "{action:?} {existing:?}");
            }
        }
    }

    #[test]
    fn removal_comes_before_addition() {
        let mut ops = change(OnExisting::Keep);
        ops.remove.push(HeaderName::from_static("x-a"));
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("old"));
        ops.apply(&mut headers, ops.values(&Facts::default()));
        assert_eq!(headers["x-a"], "new");
    }

    #[test]
    fn a_value_that_is_not_known_or_is_none_is_not_set() {
        let mut ops = change(OnExisting::Append);
        for text in ["%UPSTREAM_HOST%", "%ROUTE_NAME%", "[%ROUTE_NAME%]"] {
            let value = Value::Format(Format::parse(text).unwrap());
            ops.set.push(HeaderChange { value, ..ops.set[0].clone() });
        }
        let mut headers = HeaderMap::new();
        ops.apply(&mut headers, ops.values(&Facts { route: Some("a\nb"), ..Facts::default() }));
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["new"]);
    }
}
