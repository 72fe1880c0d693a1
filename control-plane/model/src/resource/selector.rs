//! Label selectors: reading, writing, matching.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    LabelExpression, LabelOperator, LabelSelector, Labels, check,
    error::{At, Fault},
};

pub(super) const MAX_EXPRESSIONS: usize = 32;
const MAX_VALUES: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireSelector {
    #[serde(default)]
    pub(super) match_labels: Labels,
    #[serde(default)]
    pub(super) match_expressions: Vec<WireExpression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireExpression {
    pub(super) key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl WireSelector {
    pub(super) fn parse(self, at: &At) -> Result<LabelSelector, Fault> {
        check::labels(&self.match_labels, &at.field("matchLabels"))?;
        let at = at.field("matchExpressions");
        at.at_most(&self.match_expressions, MAX_EXPRESSIONS)?;
        let match_expressions = self
            .match_expressions
            .into_iter()
            .enumerate()
            .map(|(i, e)| e.parse(&at.index(i)))
            .collect::<Result<_, _>>()?;
        Ok(LabelSelector { match_labels: self.match_labels, match_expressions })
    }
}

impl WireExpression {
    pub(super) fn parse(self, at: &At) -> Result<LabelExpression, Fault> {
        check::label_key(&self.key, &at.field("key"))?;
        let operator = match self.operator.as_str() {
            "In" => LabelOperator::In,
            "NotIn" => LabelOperator::NotIn,
            "Exists" => LabelOperator::Exists,
            "DoesNotExist" => LabelOperator::DoesNotExist,
            other => {
                return at.field("operator").refuse(other, "must be In, NotIn, Exists or DoesNotExist");
            }
        };
        let at = at.field("values");
        at.at_most(&self.values, MAX_VALUES)?;
        let wants_values = matches!(operator, LabelOperator::In | LabelOperator::NotIn);
        if wants_values && self.values.is_empty() {
            return at.refuse("", format!("is required with operator {}", self.operator));
        }
        if !wants_values && !self.values.is_empty() {
            return at
                .refuse(self.values.join(","), format!("must be empty with operator {}", self.operator));
        }
        for (i, value) in self.values.iter().enumerate() {
            check::label_value(value, &at.index(i))?;
        }
        Ok(LabelExpression { key: self.key, operator, values: self.values })
    }
}

impl LabelOperator {
    fn as_str(self) -> &'static str {
        match self {
            LabelOperator::In => "In",
            LabelOperator::NotIn => "NotIn",
            LabelOperator::Exists => "Exists",
            LabelOperator::DoesNotExist => "DoesNotExist",
        }
    }
}

impl LabelSelector {
    /// Whether a set of labels is selected. The empty selector selects everything; `NotIn` and `DoesNotExist`
    /// select what lacks the key (Kubernetes API conventions, "label selectors").
    pub fn matches(&self, labels: &Labels) -> bool {
        matches_labels(&self.match_labels, labels) && self.match_expressions.iter().all(|e| e.matches(labels))
    }

    /// The label keys that the selector reads.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.match_labels
            .keys()
            .map(String::as_str)
            .chain(self.match_expressions.iter().map(|e| e.key.as_str()))
    }

    pub(super) fn to_json(&self) -> Value {
        let mut out = Map::new();
        if !self.match_labels.is_empty() {
            out.insert("matchLabels".to_owned(), json!(self.match_labels));
        }
        if !self.match_expressions.is_empty() {
            let all: Vec<Value> = self.match_expressions.iter().map(LabelExpression::to_json).collect();
            out.insert("matchExpressions".to_owned(), Value::Array(all));
        }
        Value::Object(out)
    }
}

impl LabelExpression {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|v| self.values.contains(v)),
            LabelOperator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }

    fn to_json(&self) -> Value {
        if self.values.is_empty() {
            json!({"key": self.key, "operator": self.operator.as_str()})
        } else {
            json!({"key": self.key, "operator": self.operator.as_str(), "values": self.values})
        }
    }
}

/// Whether `labels` has every pair of `wanted` (the map form of a selector, as in `Service`).
pub fn matches_labels(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
