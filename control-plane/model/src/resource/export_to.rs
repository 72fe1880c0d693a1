//! `networking.istio.io/exportTo` on a Service: which namespaces may know of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Meta, check,
    error::{At, Fault},
};
use crate::limits::MAX_EXPORT_TO;

/// Istio's annotation: namespaces with commas between them; `.` is the own one, `*` all, `~` none.
pub const EXPORT_TO_ANNOTATION: &str = "networking.istio.io/exportTo";

/// Namespaces whose workloads are told of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Visibility {
    /// All of them.
    #[default]
    Everywhere,
    /// These; none if it is empty.
    Only(BTreeSet<String>),
}

impl Visibility {
    /// Whether workloads of a namespace are told.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Only(namespaces) => namespaces.contains(namespace),
        }
    }

    /// Whether all are.
    pub fn is_everywhere(&self) -> bool {
        *self == Self::Everywhere
    }

    /// The namespaces, if they are not all.
    pub fn only(&self) -> impl Iterator<Item = &str> {
        let namespaces = match self {
            Self::Everywhere => None,
            Self::Only(namespaces) => Some(namespaces),
        };
        namespaces.into_iter().flatten().map(String::as_str)
    }
}

/// Reads the annotation. Istio's rules: nothing twice, and neither `*` nor `~` beside anything else.
pub(super) fn parse(meta: &Meta) -> Result<Visibility, Fault> {
    let Some(text) = meta.annotations.get(EXPORT_TO_ANNOTATION) else { return Ok(Visibility::Everywhere) };
    let at = At::new("metadata").field("annotations").key(EXPORT_TO_ANNOTATION);
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    at.at_most(&words, MAX_EXPORT_TO)?;
    let mut namespaces = BTreeSet::new();
    for word in &words {
        match *word {
            "*" | "~" if words.len() > 1 => {
                return at.refuse(text, format!("has {word} beside others, which says everything already"));
            }
            "*" => return Ok(Visibility::Everywhere),
            "~" => return Ok(Visibility::Only(BTreeSet::new())),
            _ => {}
        }
        let namespace = if *word == "." { &meta.name.namespace } else { *word };
        if !check::is_dns_label(namespace) {
            return at.refuse(
                word,
                "must be '.' (the own namespace), '*' (all), '~' (none) or names of namespaces with commas between them",
            );
        }
        if !namespaces.insert(namespace.to_owned()) {
            return at.refuse(word, format!("names namespace {namespace} twice"));
        }
    }
    Ok(Visibility::Only(namespaces))
}
