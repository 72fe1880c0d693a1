//! Which filter chain a connection gets. Pure.
//!
//! As in Envoy the server name decides first, the most specific match winning: the exact name, then the longest `*.suffix`,
//! then chains without names. Among those that remain, a chain that names the transport protocol beats one
//! that does not. There is no way back: a chain whose name matched best but whose protocol does not fit ends the search.

use crate::config::{ChainMatch, ServerName, Transport};

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstBytes {
    /// Nobody looked: no chain of the listener asks.
    Unseen,
    /// No TLS.
    Raw,
    /// A `ClientHello`, with the server name in lower case where there is one.
    Tls {
        /// SNI.
        server_name: Option<String>,
    },
}

/// The position of the chain. `None`: the default chain, if there is one.
pub fn choose<'a>(
    matches: impl Iterator<Item = &'a ChainMatch> + Clone,
    first: &FirstBytes,
) -> Option<usize> {
    let name = match first {
        FirstBytes::Tls { server_name } => server_name.as_deref(),
        FirstBytes::Unseen | FirstBytes::Raw => None,
    };
    // How specific a chain is about the name: 0 for no names at all.
    let rank = |chain: &ChainMatch| -> Option<usize> {
        if chain.server_names.is_empty() {
            return Some(0);
        }
        let name = name?;
        let ranks = chain.server_names.iter().filter_map(|pattern| match pattern {
            ServerName::Exact(exact) => (exact == name).then_some(usize::MAX),
            ServerName::Suffix(suffix) => {
                (name.len() > suffix.len() && name.ends_with(suffix.as_str())).then_some(suffix.len())
            }
        });
        ranks.max()
    };
    let best = matches.clone().filter_map(rank).max()?;
    let protocol = |chain: &ChainMatch| match (chain.transport, first) {
        (Transport::Any, _) => Some(0),
        (Transport::Tls, FirstBytes::Tls { .. }) | (Transport::Raw, FirstBytes::Raw | FirstBytes::Unseen) => {
            Some(1)
        }
        (Transport::Tls | Transport::Raw, _) => None,
    };
    matches
        .enumerate()
        .filter(|(_, chain)| rank(chain) == Some(best))
        .filter_map(|(at, chain)| protocol(chain).map(|specific| (specific, at)))
        .max_by_key(|(specific, at)| (*specific, std::cmp::Reverse(*at)))
        .map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(names: &[&str], transport: Transport) -> ChainMatch {
        let names = names.iter().map(|n| match n.strip_prefix('*') {
            Some(suffix) => ServerName::Suffix(suffix.to_owned()),
            None => ServerName::Exact((*n).to_owned()),
        });
        ChainMatch { server_names: names.collect(), transport }
    }

    fn tls(name: &str) -> FirstBytes {
        FirstBytes::Tls { server_name: Some(name.to_owned()).filter(|n| !n.is_empty()) }
    }

    #[test]
    fn the_most_specific_name_wins() {
        let chains = [
            chain(&[], Transport::Any),
            chain(&["*.shop"], Transport::Tls),
            chain(&["a.shop", "b.shop"], Transport::Tls),
            chain(&["*.eu.shop"], Transport::Tls),
        ];
        for (first, expected) in [
            (tls("b.shop"), Some(2)),
            (tls("c.shop"), Some(1)),
            (tls("c.eu.shop"), Some(3)),
            (tls("shop"), Some(0)),
            (tls(""), Some(0)),
            (FirstBytes::Raw, Some(0)),
        ] {
            assert_eq!(choose(chains.iter(), &first), expected, "{first:?}");
        }
    }

    #[test]
    fn without_a_fitting_chain_there_is_none() {
        let chains = [chain(&["a"], Transport::Tls)];
        assert_eq!(choose(chains.iter(), &tls("b")), None);
        assert_eq!(choose(chains.iter(), &FirstBytes::Raw), None);
    }

    #[test]
    fn a_named_protocol_beats_an_unnamed_one() {
        let chains = [chain(&[], Transport::Any), chain(&[], Transport::Tls), chain(&[], Transport::Raw)];
        assert_eq!(choose(chains.iter(), &tls("x")), Some(1));
        assert_eq!(choose(chains.iter(), &FirstBytes::Raw), Some(2));
    }
}
