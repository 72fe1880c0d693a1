//! Values of filters that are more than something to compare with.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_model::resource::{LabelQuery, Labels};
use regex::{Regex, RegexBuilder};

/// Bytes of a compiled expression.
const MAX_REGEX: usize = 64 * 1_024;

/// `10.1.0.7`, `10.1.0.0/16`.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "is neither an address nor a CIDR".to_owned())
}

/// `namespace/prefix`, `namespace/`, or a prefix in any namespace.
#[derive(Debug, Clone)]
pub(super) struct Named {
    namespace: Option<String>,
    prefix: String,
}

impl Named {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let named = match text.split_once('/') {
            Some((namespace, prefix)) => {
                Self { namespace: Some(namespace.to_owned()), prefix: prefix.to_owned() }
            }
            None => Self { namespace: None, prefix: text.to_owned() },
        };
        let empty = named.prefix.is_empty() && named.namespace.as_deref().is_none_or(str::is_empty);
        if empty { Err("is not [namespace/][name]".to_owned()) } else { Ok(named) }
    }

    pub(super) fn fits(&self, namespace: &str, name: &str) -> bool {
        !name.is_empty()
            && name.starts_with(&self.prefix)
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }
}

/// A name in which `*` stands for any characters.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('*').map(str::to_owned).collect())
    }

    pub(super) fn fits(&self, text: &str) -> bool {
        // `split` gives one part at least.
        let (Some((first, rest)), Some(last)) = (self.0.split_first(), self.0.last()) else { return false };
        if rest.is_empty() {
            return text == first;
        }
        let Some(text) = text.strip_prefix(first.as_str()) else { return false };
        let Some(mut text) = text.strip_suffix(last.as_str()) else { return false };
        for part in &rest[..rest.len() - 1] {
            match text.find(part.as_str()) {
                Some(at) => text = &text[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

/// A DNS name or pattern, compared without case and last dot.
#[derive(Debug, Clone)]
pub(super) struct Domain(Pattern);

impl Domain {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let name = plain(text);
        if name.is_empty() {
            return Err("is no name".to_owned());
        }
        Ok(Self(Pattern::new(&name)))
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        self.0.fits(&plain(name))
    }
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// `[cluster/]node`, each with `*`; `cluster/` is all nodes of it.
#[derive(Debug, Clone)]
pub(super) struct NodeName {
    cluster: Option<Pattern>,
    node: Option<Pattern>,
}

impl NodeName {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (cluster, node) = text.split_once('/').map_or((None, text), |(c, n)| (Some(c), n));
        if node.is_empty() && cluster.is_none_or(str::is_empty) {
            return Err("is not [cluster/]node".to_owned());
        }
        let some = |text: &str| (!text.is_empty()).then(|| Pattern::new(text));
        Ok(Self { cluster: cluster.and_then(some), node: some(node) })
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        let (cluster, node) = name.split_once('/').unwrap_or(("", name));
        self.cluster.as_ref().is_none_or(|wanted| wanted.fits(cluster))
            && self.node.as_ref().is_none_or(|wanted| wanted.fits(node))
    }
}

/// A label selector. A key may say where the label is from (`k8s:app=web`, `reserved:host`), or not.
#[derive(Debug, Clone)]
pub(super) struct Selector(LabelQuery);

impl Selector {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        LabelQuery::parse(&text.replace(':', ".")).map(Self)
    }

    pub(super) fn fits(&self, labels: &[String]) -> bool {
        let mut known = Labels::new();
        for label in labels {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            known.insert(key.replace(':', "."), value.to_owned());
            let (from, bare) = key.split_once(':').unwrap_or(("", key));
            known.insert(format!("any.{bare}"), value.to_owned());
            // `world` alone would be any label of this name.
            if from != "reserved" {
                known.insert(bare.to_owned(), value.to_owned());
            }
        }
        self.0.matches(&known)
    }
}

/// `404`, `4+`.
#[derive(Debug, Clone)]
pub(super) struct StatusCode(String, bool);

impl StatusCode {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (digits, is_prefix) = text.strip_suffix('+').map_or((text, false), |digits| (digits, true));
        let fine = (1..=3).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (is_prefix || digits.len() == 3)
            && matches!(digits.as_bytes()[0], b'1'..=b'5');
        if fine {
            Ok(Self(digits.to_owned(), is_prefix))
        } else {
            Err("is neither a status like 404 nor a class like 4+".to_owned())
        }
    }

    pub(super) fn fits(&self, code: u32) -> bool {
        let code = code.to_string();
        if self.1 { code.len() == 3 && code.starts_with(&self.0) } else { code == self.0 }
    }
}

/// RE2's syntax, as `regex` has it: no expression takes more than linear time.
pub(super) fn regex(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .size_limit(MAX_REGEX)
        .build()
        .map_err(|_| "is no regular expression, or too large".to_owned())
}
