//! Namespaces by their labels.

use std::{collections::BTreeSet, sync::Arc};

use imbl::OrdMap;
use serde::Serialize;

use crate::resource::{Kind, LabelSelector, Labels, NAMESPACE_NAME_LABEL, NamespacedName, Object, ObjectKey};

/// The labels of all namespaces, of which there are more than have been declared.
#[derive(Debug, Clone, Copy)]
pub struct Namespaces<'a>(&'a OrdMap<ObjectKey, Arc<Object>>);

impl<'a> Namespaces<'a> {
    #[allow(missing_docs)]
    pub fn of(objects: &'a OrdMap<ObjectKey, Arc<Object>>) -> Self {
        Self(objects)
    }

    /// What a selector finds now, in a form that needs no labels any more.
    pub(super) fn select(self, selector: &LabelSelector) -> NamespaceMatch {
        if selector.keys().all(|key| key == NAMESPACE_NAME_LABEL) {
            return NamespaceMatch::Selected(selector.clone());
        }
        let otherwise = |object: &&Object| {
            let meta = object.meta();
            selector.matches(&meta.labels) != selector.matches(&undeclared(&meta.name.name))
        };
        let found = self.declared().filter(otherwise).map(|object| object.meta().name.name.clone());
        NamespaceMatch::Labelled { selector: selector.clone(), otherwise: found.collect() }
    }

    fn declared(self) -> impl Iterator<Item = &'a Object> {
        let first = ObjectKey { kind: Kind::Namespace, name: NamespacedName::new("", "") };
        let rest = self.0.range(first..).take_while(|(key, _)| key.kind == Kind::Namespace);
        rest.map(|(_, object)| object.as_ref())
    }
}

/// The labels of a namespace that is known by its name alone.
pub(crate) fn undeclared(namespace: &str) -> Labels {
    Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), namespace.to_owned())])
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum NamespaceMatch {
    Named(String),
    /// By the label that every namespace has, its name.
    Selected(LabelSelector),
    /// By others as well.
    Labelled {
        #[allow(missing_docs)]
        selector: LabelSelector,
        /// Namespaces that have labels by which the selector says of them the opposite of what it says of their mere names.
        otherwise: BTreeSet<String>,
    },
}

impl NamespaceMatch {
    #[allow(missing_docs)]
    pub fn matches(&self, namespace: &str) -> bool {
        match self {
            NamespaceMatch::Named(name) => name == namespace,
            NamespaceMatch::Selected(selector) => selector.matches(&undeclared(namespace)),
            NamespaceMatch::Labelled { selector, otherwise } => {
                selector.matches(&undeclared(namespace)) != otherwise.contains(namespace)
            }
        }
    }

    /// The only namespace that can match, where there is only one.
    pub fn only(&self) -> Option<&str> {
        match self {
            NamespaceMatch::Named(name) => Some(name),
            NamespaceMatch::Selected(selector) | NamespaceMatch::Labelled { selector, .. } => {
                selector.match_labels.get(NAMESPACE_NAME_LABEL).map(String::as_str)
            }
        }
    }

    /// The selector, if what it finds depends on labels that a Namespace object gives.
    pub(super) fn by_label(&self) -> Option<&LabelSelector> {
        match self {
            NamespaceMatch::Labelled { selector, .. } => Some(selector),
            NamespaceMatch::Named(_) | NamespaceMatch::Selected(_) => None,
        }
    }
}
