//! From the host of a request to its virtual host, in Envoy's order: exact name, longest `*suffix`, longest
//! `prefix*`, then `*`.

use std::{borrow::Cow, collections::HashMap};

use serde::Serialize;
use thiserror::Error;

/// Domains to positions in the list of virtual hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HostIndex {
    exact: HashMap<String, usize>,
    /// Without the star, longest first.
    suffixes: Vec<(String, usize)>,
    /// Without the star, longest first.
    prefixes: Vec<(String, usize)>,
    any: Option<usize>,
}

/// Why a domain cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HostError {
    /// Another virtual host, or this one, has it already.
    #[error("is a domain of two virtual hosts")]
    Duplicate,
    /// A star in the middle, or two of them.
    #[error("may have one '*', at its beginning or end")]
    Star,
    /// No text at all.
    #[error("is empty")]
    Empty,
}

impl HostIndex {
    /// Adds a domain. Case does not matter.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn insert(&mut self, domain: &str, vhost: usize) -> Result<(), HostError> {
        let domain = domain.to_ascii_lowercase();
        let stars = domain.bytes().filter(|b| *b == b'*').count();
        let list = match (stars, domain.strip_prefix('*'), domain.strip_suffix('*')) {
            _ if domain.is_empty() => return Err(HostError::Empty),
            (0, ..) => {
                return match self.exact.insert(domain, vhost) {
                    None => Ok(()),
                    Some(_) => Err(HostError::Duplicate),
                };
            }
            (1, Some(""), _) => {
                return match self.any.replace(vhost) {
                    None => Ok(()),
                    Some(_) => Err(HostError::Duplicate),
                };
            }
            (1, Some(suffix), _) => (&mut self.suffixes, suffix),
            (1, _, Some(prefix)) => (&mut self.prefixes, prefix),
            _ => return Err(HostError::Star),
        };
        let (list, affix) = list;
        if list.iter().any(|(known, _)| known == affix) {
            return Err(HostError::Duplicate);
        }
        list.push((affix.to_owned(), vhost));
        list.sort_by_key(|(affix, _)| std::cmp::Reverse(affix.len()));
        Ok(())
    }

    /// The virtual host of a host name. The star of a wildcard stands for at least one character.
    pub fn find(&self, host: &str) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let longer = |affix: &str| host.len() > affix.len();
        self.exact
            .get(host.as_ref())
            .or_else(|| self.suffixes.iter().find(|(s, _)| longer(s) && host.ends_with(s)).map(|(_, v)| v))
            .or_else(|| self.prefixes.iter().find(|(p, _)| longer(p) && host.starts_with(p)).map(|(_, v)| v))
            .copied()
            .or(self.any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(domains: &[&str]) -> HostIndex {
        let mut index = HostIndex::default();
        for (at, domain) in domains.iter().enumerate() {
            index.insert(domain, at).unwrap();
        }
        index
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let index = index(&["*", "*.shop", "*-x.shop", "pay.shop", "pay.*", "*.eu.shop"]);
        for (host, expected) in [
            ("pay.shop", 3),
            ("PAY.Shop", 3),
            ("web.shop", 1),
            ("web.eu.shop", 5),
            ("a-x.shop", 2),
            ("pay.elsewhere", 4),
            ("shop", 0),
            (".shop", 0),
            ("", 0),
        ] {
            assert_eq!(index.find(host), Some(expected), "{host}");
        }
        assert_eq!(super::tests::index(&["a"]).find("b"), None);
    }

    #[test]
    fn ambiguous_and_malformed_domains_are_refused() {
        let mut index = index(&["a.b", "*.b", "*"]);
        for (domain, error) in [
            ("A.b", HostError::Duplicate),
            ("*.b", HostError::Duplicate),
            ("*", HostError::Duplicate),
            ("a*b", HostError::Star),
            ("*a*", HostError::Star),
            ("", HostError::Empty),
        ] {
            assert_eq!(index.insert(domain, 9), Err(error), "{domain}");
        }
    }
}
