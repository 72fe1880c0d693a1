//! Who has a label, and which selectors may match: without trying all.

use std::collections::{BTreeMap, BTreeSet};

use crate::resource::{LabelOperator, LabelSelector, Labels};

/// Sets by label key, label value and namespace.
type ByLabel<T> = BTreeMap<String, BTreeMap<String, BTreeMap<String, BTreeSet<T>>>>;

/// Things with labels.
#[derive(Debug, Clone)]
pub(super) struct Labelled<T> {
    by_namespace: BTreeMap<String, BTreeSet<T>>,
    by_label: ByLabel<T>,
}

impl<T> Default for Labelled<T> {
    fn default() -> Self {
        Self { by_namespace: BTreeMap::new(), by_label: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Labelled<T> {
    pub(super) fn insert(&mut self, namespace: &str, labels: &Labels, thing: &T) {
        insert_into(&mut self.by_namespace, namespace, thing);
        for (key, value) in labels {
            insert_label(&mut self.by_label, (key, value), namespace, thing);
        }
    }

    pub(super) fn remove(&mut self, namespace: &str, labels: &Labels, thing: &T) {
        remove_from(&mut self.by_namespace, namespace, thing);
        for (key, value) in labels {
            remove_label(&mut self.by_label, (key, value), namespace, thing);
        }
    }

    /// In ascending order and without duplicates: all that could match a selector, and few more.
    pub(super) fn candidates(&self, namespace: Option<&str>, anchor: &Anchor) -> BTreeSet<&T> {
        match anchor {
            Some((key, values)) => values
                .iter()
                .filter_map(|value| self.by_label.get(key)?.get(value))
                .flat_map(|sets| pick(sets, namespace))
                .collect(),
            None => pick(&self.by_namespace, namespace).collect(),
        }
    }

    fn count(&self, namespace: Option<&str>, key: &str, value: &str) -> usize {
        let Some(sets) = self.by_label.get(key).and_then(|values| values.get(value)) else { return 0 };
        match namespace {
            Some(namespace) => sets.get(namespace).map_or(0, BTreeSet::len),
            None => sets.values().map(BTreeSet::len).sum(),
        }
    }

    /// The label of a selector that the fewest have.
    pub(super) fn anchor(&self, namespace: Option<&str>, selector: &LabelSelector) -> Anchor {
        let exact = selector.match_labels.iter().map(|(key, value)| (key, std::slice::from_ref(value)));
        let any_of = selector.match_expressions.iter().filter(|e| e.operator == LabelOperator::In);
        let all = exact.chain(any_of.map(|e| (&e.key, e.values.as_slice())));
        let count = |(key, values): &(&String, &[String])| -> usize {
            values.iter().map(|value| self.count(namespace, key, value)).sum()
        };
        all.min_by_key(count).map(|(key, values)| (key.clone(), values.to_vec()))
    }
}

/// A label that a selector surely asks for, with the values that it accepts. None: it asks for none.
pub(super) type Anchor = Option<(String, Vec<String>)>;

/// Selectors, each under a label that it surely asks for.
#[derive(Debug, Clone)]
pub(super) struct Selectors<S> {
    anchored: ByLabel<S>,
    loose: BTreeMap<String, BTreeSet<S>>,
    anchors: BTreeMap<S, (String, Anchor)>,
}

/// Stands for every namespace. No namespace has this name.
const EVERY: &str = "";

impl<S> Default for Selectors<S> {
    fn default() -> Self {
        Self { anchored: BTreeMap::new(), loose: BTreeMap::new(), anchors: BTreeMap::new() }
    }
}

impl<S: Ord + Clone> Selectors<S> {
    pub(super) fn insert(&mut self, id: &S, namespace: Option<&str>, anchor: Anchor) {
        self.remove(id);
        let namespace = namespace.unwrap_or(EVERY);
        match &anchor {
            Some((key, values)) => {
                for value in values {
                    insert_label(&mut self.anchored, (key, value), namespace, id);
                }
            }
            None => insert_into(&mut self.loose, namespace, id),
        }
        self.anchors.insert(id.clone(), (namespace.to_owned(), anchor));
    }

    pub(super) fn remove(&mut self, id: &S) {
        match self.anchors.remove(id) {
            Some((namespace, Some((key, values)))) => {
                for value in &values {
                    remove_label(&mut self.anchored, (&key, value), &namespace, id);
                }
            }
            Some((namespace, None)) => remove_from(&mut self.loose, &namespace, id),
            None => {}
        }
    }

    /// Those that may match something with these labels, in ascending order.
    pub(super) fn candidates(&self, namespace: &str, labels: &Labels) -> BTreeSet<&S> {
        let anchored = labels.iter().filter_map(|(key, value)| self.anchored.get(key)?.get(value));
        anchored
            .chain([&self.loose])
            .flat_map(|sets| [namespace, EVERY].into_iter().filter_map(|n| sets.get(n)))
            .flatten()
            .collect()
    }
}

fn pick<'a, T>(
    sets: &'a BTreeMap<String, BTreeSet<T>>,
    namespace: Option<&str>,
) -> impl Iterator<Item = &'a T> {
    let one = namespace.map(|namespace| sets.get(namespace));
    let all = namespace.is_none().then(|| sets.values());
    one.into_iter().flatten().chain(all.into_iter().flatten()).flatten()
}

pub(super) fn insert_into<T: Ord + Clone>(sets: &mut BTreeMap<String, BTreeSet<T>>, name: &str, thing: &T) {
    match sets.get_mut(name) {
        Some(set) => drop(set.insert(thing.clone())),
        None => drop(sets.insert(name.to_owned(), BTreeSet::from([thing.clone()]))),
    }
}

pub(super) fn remove_from<K, Q, T>(sets: &mut BTreeMap<K, BTreeSet<T>>, name: &Q, thing: &T)
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
    T: Ord,
{
    if let Some(set) = sets.get_mut(name) {
        set.remove(thing);
        if set.is_empty() {
            sets.remove(name);
        }
    }
}

fn insert_label<T: Ord + Clone>(
    map: &mut ByLabel<T>,
    (key, value): (&str, &str),
    namespace: &str,
    thing: &T,
) {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), BTreeMap::new());
    }
    let Some(values) = map.get_mut(key) else { return };
    if !values.contains_key(value) {
        values.insert(value.to_owned(), BTreeMap::new());
    }
    let Some(sets) = values.get_mut(value) else { return };
    insert_into(sets, namespace, thing);
}

fn remove_label<T: Ord>(map: &mut ByLabel<T>, (key, value): (&str, &str), namespace: &str, thing: &T) {
    let Some(values) = map.get_mut(key) else { return };
    let Some(sets) = values.get_mut(value) else { return };
    remove_from(sets, namespace, thing);
    if sets.is_empty() {
        values.remove(value);
    }
    if values.is_empty() {
        map.remove(key);
    }
}
