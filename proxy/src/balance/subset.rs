//! Subsets: the endpoints that have the metadata that a route asks for.
//!
//! Source: Envoy's "Load balancer subsets". Every selector makes one subset of each combination of values that its keys have
//! among the endpoints; a route's `metadata_match` names the keys, and thereby the selector.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use serde_json::Value;

use super::{
    Levels,
    metadata::{Criteria, Metadata, matches},
};

/// Most subsets that one endpoint is in: lists of values make one each.
const PER_ENDPOINT: usize = 64;

/// What happens when there is no such subset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The request is answered with 503.
    Nobody,
    /// All endpoints.
    Anybody,
    /// Those that match `default_subset`.
    Default,
    /// Some of the keys only; of selectors.
    Keys(BTreeSet<String>),
}

/// `LbSubsetSelector`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selector {
    /// Exactly those of a request's criteria.
    pub keys: BTreeSet<String>,
    /// In place of the general one.
    pub fallback: Option<Fallback>,
}

/// `LbSubsetConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubsetConfig {
    /// Where no selector has its own.
    pub fallback: Fallback,
    /// For [`Fallback::Default`].
    pub default: Criteria,
    /// Those that there are.
    pub selectors: Vec<Selector>,
    /// Whether an endpoint with a list as value has each of the values.
    pub list_as_any: bool,
    /// Whether all endpoints are asked where the fallback has nobody.
    pub panic_mode_any: bool,
    /// Whether weights of localities count within subsets, too.
    pub by_locality: bool,
}

/// The subsets of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subsets {
    /// By selector, and by the values of its keys in their order.
    subsets: Vec<HashMap<Vec<String>, Levels>>,
    default: Levels,
}

impl Subsets {
    /// Sorts endpoints with this metadata. `levels` makes one of some of them, by position.
    pub fn build(config: &SubsetConfig, endpoints: &[&Metadata], levels: impl Fn(&[u32]) -> Levels) -> Self {
        let numbered = || (0_u32..).zip(endpoints.iter().copied());
        let subsets = config.selectors.iter().map(|selector| {
            let mut members: HashMap<Vec<String>, Vec<u32>> = HashMap::new();
            for (at, metadata) in numbered() {
                for values in combinations(selector, metadata, config.list_as_any) {
                    members.entry(values).or_default().push(at);
                }
            }
            members.into_iter().map(|(values, members)| (values, levels(&members))).collect()
        });
        let default = numbered().filter(|(_, has)| matches(&config.default, has, config.list_as_any));
        let default: Vec<_> = default.map(|(at, _)| at).collect();
        Self { subsets: subsets.collect(), default: levels(&default) }
    }

    /// Where a request goes; `all` are the levels of all endpoints.
    pub fn find<'a>(
        &'a self,
        config: &SubsetConfig,
        wanted: Option<&Metadata>,
        all: &'a Levels,
    ) -> Option<&'a Levels> {
        let found = self.search(config, wanted, all).filter(|levels| !levels.is_empty());
        found.or(config.panic_mode_any.then_some(all))
    }

    fn search<'a>(
        &'a self,
        config: &SubsetConfig,
        wanted: Option<&Metadata>,
        all: &'a Levels,
    ) -> Option<&'a Levels> {
        let mut fallback = &config.fallback;
        let mut wanted = wanted.cloned().unwrap_or_default();
        // Each step drops keys, so this ends; the bound is for selectors that name more than they have.
        for _ in 0..=config.selectors.len() {
            let selected = config.selectors.iter().zip(&self.subsets);
            let mut selected = selected.filter(|(selector, _)| selector.keys.iter().eq(wanted.keys()));
            let Some((selector, subsets)) = selected.next() else { break };
            let values: Vec<String> = wanted.values().map(Value::to_string).collect();
            if let Some(levels) = subsets.get(&values).filter(|levels| !levels.is_empty()) {
                return Some(levels);
            }
            match &selector.fallback {
                Some(Fallback::Keys(keys)) => wanted.retain(|key, _| keys.contains(key)),
                Some(own) => {
                    fallback = own;
                    break;
                }
                None => break,
            }
        }
        match fallback {
            Fallback::Nobody | Fallback::Keys(_) => None,
            Fallback::Anybody => Some(all),
            Fallback::Default => Some(&self.default),
        }
    }
}

fn combinations(selector: &Selector, metadata: &Metadata, list_as_any: bool) -> Vec<Vec<String>> {
    let mut all = vec![vec![]];
    for key in &selector.keys {
        let Some(value) = metadata.get(key) else { return vec![] };
        let values: Vec<String> = match value {
            Value::Array(any) if list_as_any => any.iter().map(Value::to_string).collect(),
            one => vec![one.to_string()],
        };
        let longer = all.iter().flat_map(|so_far: &Vec<String>| {
            values.iter().map(move |value| so_far.iter().chain([value]).cloned().collect())
        });
        all = longer.take(PER_ENDPOINT).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::levels::tests::{CONFIG, candidates},
        *,
    };

    fn metadata(value: Value) -> Metadata {
        value.as_object().unwrap().clone().into_iter().collect()
    }

    fn keys(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn config() -> SubsetConfig {
        let selector = |names: &[&str], fallback| Selector { keys: keys(names), fallback };
        SubsetConfig {
            fallback: Fallback::Default,
            default: Criteria::new(metadata(json!({"stage": "prod"}))),
            selectors: vec![
                selector(&["stage"], None),
                selector(&["stage", "version"], Some(Fallback::Keys(keys(&["stage"])))),
                selector(&["version"], Some(Fallback::Nobody)),
                selector(&["shard"], Some(Fallback::Anybody)),
            ],
            list_as_any: true,
            panic_mode_any: false,
            by_locality: false,
        }
    }

    const HOSTS: usize = 4;

    fn asked(config: &SubsetConfig, wanted: Option<Value>) -> Option<Vec<u32>> {
        let endpoints = [
            metadata(json!({"stage": "prod", "version": 1})),
            metadata(json!({"stage": "prod", "version": 2})),
            metadata(json!({"stage": "dev", "version": 3, "shard": ["a", "b"]})),
            metadata(json!({"stage": "dev"})),
        ];
        let all = candidates(&[(0, HOSTS, 0)]);
        let levels = |members: &[u32]| {
            Levels::of(members.iter().map(|at| (*at, &all[*at as usize])).collect(), CONFIG)
        };
        let subsets = Subsets::build(config, &endpoints.each_ref(), levels);
        let whole = Levels::build(&all, CONFIG);
        let wanted = wanted.map(metadata);
        let found = subsets.find(config, wanted.as_ref(), &whole)?;
        Some(found.levels.iter().flat_map(|level| level.healthy.hosts.clone()).collect())
    }

    #[test]
    fn a_request_goes_to_the_endpoints_that_have_what_it_asks_for() {
        let config = config();
        for (wanted, expected) in [
            (json!({"stage": "dev"}), Some(vec![2, 3])),
            (json!({"stage": "prod", "version": 2}), Some(vec![1])),
            (json!({"version": 3}), Some(vec![2])),
            (json!({"shard": "b"}), Some(vec![2])),
        ] {
            assert_eq!(asked(&config, Some(wanted.clone())), expected, "{wanted}");
        }
    }

    #[test]
    fn each_selector_falls_back_in_its_own_way() {
        let config = config();
        for (wanted, expected) in [
            (json!({"stage": "none"}), Some(vec![0, 1])),
            (json!({"stage": "dev", "version": 9}), Some(vec![2, 3])),
            (json!({"stage": "none", "version": 9}), Some(vec![0, 1])),
            (json!({"version": 9}), None),
            (json!({"shard": "z"}), Some(vec![0, 1, 2, 3])),
            (json!({"unknown": 1}), Some(vec![0, 1])),
        ] {
            assert_eq!(asked(&config, Some(wanted.clone())), expected, "{wanted}");
        }
        assert_eq!(asked(&config, None), Some(vec![0, 1]));
        let strict = SubsetConfig { fallback: Fallback::Nobody, ..config.clone() };
        assert_eq!(asked(&strict, None), None);
        let panicking = SubsetConfig { panic_mode_any: true, ..strict };
        assert_eq!(asked(&panicking, None), Some(vec![0, 1, 2, 3]));
        let exact = SubsetConfig { list_as_any: false, ..config };
        assert_eq!(asked(&exact, Some(json!({"shard": ["a", "b"]}))), Some(vec![2]));
    }

    #[test]
    fn lists_do_not_make_subsets_without_end() {
        let selector = Selector { keys: keys(&["a", "b", "c"]), fallback: None };
        let long: Vec<u32> = (0..1000).collect();
        let all = metadata(json!({"a": long, "b": long, "c": long}));
        assert_eq!(combinations(&selector, &all, true).len(), PER_ENDPOINT);
    }
}
