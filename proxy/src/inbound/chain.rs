//! Filter chains at work.

use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{
    gate::Gate,
    select::{FirstBytes, choose},
};
use crate::{
    config::{FilterChain, Listener, NetworkFilter, RouteSource, TcpProxy},
    forward::{HttpChain, RouteSlot},
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
        let build = |config: &FilterChain| {
            let same = former.and_then(|f| f.all().find(|chain| chain.config.serves_alike(config)));
            same.map_or_else(|| chain(config, &name, parts).map(Arc::new), |chain| Ok(chain.clone()))
        };
        let chains = listener.chains.iter().map(build).collect::<Result<Vec<_>, _>>()?;
        let default = listener.default_chain.as_ref().map(build).transpose()?;
        for (chain, config) in chains.iter().chain(&default).zip(listener.all_chains()) {
            chain.gate.set(&config.access);
        }
        Ok(Self { listener, chains, default })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default)
    }

    pub(super) fn choose(&self, first: &FirstBytes) -> Option<&Arc<Chain>> {
        let at = choose(self.chains.iter().map(|c| &c.config.matches), first);
        at.and_then(|at| self.chains.get(at)).or(self.default.as_ref())
    }

    /// Lets the connections finish of all chains that `next` does not have.
    pub(super) fn drain_except(&self, next: Option<&Self>) {
        for chain in self.all() {
            if !next.is_some_and(|next| next.all().any(|kept| Arc::ptr_eq(kept, chain))) {
                chain.drain.cancel();
            }
        }
    }
}

fn chain(config: &FilterChain, listener: &Arc<str>, parts: &Parts<'_>) -> Result<Chain, ChainError> {
    let (filter, codec) = match &config.filter {
        NetworkFilter::Tcp(tcp) => (Filter::Tcp(tcp.clone()), None),
        NetworkFilter::Http(manager) => {
            let chain = HttpChain {
                listener: listener.clone(),
                manager: (**manager).clone(),
                routes: (parts.routes)(&manager.routes),
                stats: parts.stats.clone(),
                shared: parts.shared.clone(),
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
        tls: tls.transpose()?,
        filter,
        drain: CancellationToken::new(),
    })
}
