//! Filter chains at work.

use std::sync::{Arc, Weak};

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    gate::Gate,
    select::{Ends, FirstBytes, choose, reachable},
};
use crate::{
    config::{ChainMatch, FilterChain, HttpManager, Listener, NetworkFilter, RouteSource, TcpProxy},
    forward::{HttpChain, RouteSlot},
    keys::KeyCache,
    shared::Shared,
    telemetry::ListenerStats,
    tls::ServerTls,
};

/// A chain cannot be set up.
#[derive(Debug, Clone, Error)]
pub enum ChainError {
    /// TLS.
    #[error("filter chain {chain:?}: {source}")]
    Tls {
        /// Name of the chain.
        chain: String,
        /// The TLS library's words.
        source: mesh_tls::Error,
    },
}

/// What serves the connections of a chain.
#[derive(Debug)]
pub(super) enum Filter {
    Http(Arc<HttpChain>),
    Tcp(TcpProxy),
}

/// A chain. Connections hold it, so that it outlives its place in the listener.
#[derive(Debug)]
pub(super) struct Chain {
    /// Without its rules of access, which are in `gate`: they change while connections stand.
    pub(super) config: FilterChain,
    pub(super) gate: Gate,
    /// It is the listener's default chain: for connections that match no other.
    default: bool,
    pub(super) tls: Option<ServerTls>,
    pub(super) filter: Filter,
    /// Its connections are to finish.
    pub(super) drain: CancellationToken,
}

/// All chains of a listener at one moment.
#[derive(Debug)]
pub struct Chains {
    pub(super) listener: Arc<Listener>,
    chains: Vec<Arc<Chain>>,
    default: Option<Arc<Chain>>,
    /// Those of former versions that may have connections yet.
    retired: Vec<Weak<Chain>>,
}

/// What chains are built from.
pub(super) struct Parts<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) stats: &'a Arc<ListenerStats>,
    pub(super) routes: &'a dyn Fn(&RouteSource) -> RouteSlot,
}

impl Chains {
    /// Sets up the chains of a listener. Those that have not changed are taken over, with their connections; if only
    /// who may connect has, they are given the new rules, once all chains are set up.
    pub(super) fn build(
        listener: Arc<Listener>,
        parts: &Parts<'_>,
        former: Option<&Self>,
    ) -> Result<Self, ChainError> {
        let name: Arc<str> = listener.name.as_str().into();
        let mut free: Vec<&Arc<Chain>> = former.iter().flat_map(|former| former.all()).collect();
        // One chain for one place: two that serve alike may let in different callers.
        let mut build = |config: &FilterChain, default: bool| {
            let alike = |chain: &&Arc<Chain>| chain.default == default && chain.config.serves_alike(config);
            match free.iter().position(alike) {
                Some(at) => Ok(free.remove(at).clone()),
                None => chain(config, default, &name, parts).map(Arc::new),
            }
        };
        let chains = listener.chains.iter().map(|c| build(c, false)).collect::<Result<Vec<_>, _>>()?;
        let default = listener.default_chain.as_ref().map(|c| build(c, true)).transpose()?;
        for (chain, config) in chains.iter().chain(&default).zip(listener.all_chains()) {
            chain.gate.set(&config.access);
        }
        Ok(Self { listener, chains, default, retired: Vec::new() })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default)
    }

    /// Whether the first bytes of a connection must be seen before a chain can be chosen; and if they turn out not to be TLS,
    /// whether they must be seen to be HTTP.
    pub(super) fn inspects(&self, ends: Ends) -> (bool, bool) {
        let reachable = reachable(self.chains.iter().map(|c| &c.config.matches), ends);
        let matches = || reachable.iter().filter_map(|at| self.chains.get(*at)).map(|c| &c.config.matches);
        (matches().any(ChainMatch::inspects), matches().any(|m| !m.application_protocols.is_empty()))
    }

    pub(super) fn choose(&self, ends: Ends, first: &FirstBytes) -> Option<&Arc<Chain>> {
        let at = choose(self.chains.iter().map(|c| &c.config.matches), ends, first);
        at.and_then(|at| self.chains.get(at)).or(self.default.as_ref())
    }

    /// Takes the place of a former version: the connections of chains that this one does not have are to finish, and
    /// until they have they are judged by the rules of today, whichever version comes.
    pub(super) fn replace(&mut self, former: &Self) {
        let kept = |chain: &&Arc<Chain>| !self.all().any(|kept| Arc::ptr_eq(kept, chain));
        let gone = former.all().filter(kept).cloned();
        let retired: Vec<Arc<Chain>> = former.retired.iter().filter_map(Weak::upgrade).chain(gone).collect();
        for chain in &retired {
            match self.listener.rules_in_place_of(&chain.config.matches, chain.default) {
                Some(rules) => chain.gate.set(rules),
                None => chain.gate.close(),
            }
            chain.drain.cancel();
        }
        self.retired = retired.iter().map(Arc::downgrade).collect();
    }

    /// Lets all connections finish.
    pub(super) fn drain(&self) {
        self.all().for_each(|chain| chain.drain.cancel());
    }
}

/// What goes on beside the requests of a chain, as long as the chain stands.
fn helpers(manager: &HttpManager, shared: &Arc<Shared>) -> JoinSet<()> {
    let keys = manager.filters.iter().flat_map(|filter| filter.kind.keys_ahead());
    keys.map(|keys| KeyCache::keep(Arc::downgrade(shared), keys.clone())).collect()
}

fn chain(
    config: &FilterChain,
    default: bool,
    listener: &Arc<str>,
    parts: &Parts<'_>,
) -> Result<Chain, ChainError> {
    let (filter, codec) = match &config.filter {
        NetworkFilter::Tcp(tcp) => (Filter::Tcp(tcp.clone()), None),
        NetworkFilter::Http(manager) => {
            let chain = HttpChain {
                listener: listener.clone(),
                manager: (**manager).clone(),
                routes: (parts.routes)(&manager.routes),
                stats: parts.stats.clone(),
                shared: parts.shared.clone(),
                helpers: helpers(manager, parts.shared),
            };
            (Filter::Http(Arc::new(chain)), Some(manager.codec))
        }
    };
    let tls = config.tls.as_ref().map(|tls| {
        ServerTls::new(&parts.shared.secrets, tls, codec)
            .map_err(|source| ChainError::Tls { chain: config.name.clone(), source })
    });
    Ok(Chain {
        config: FilterChain { access: Vec::new(), ..config.clone() },
        gate: Gate::new(&config.access),
        default,
        tls: tls.transpose()?,
        filter,
        drain: CancellationToken::new(),
    })
}
