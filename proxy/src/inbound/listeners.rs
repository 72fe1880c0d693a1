//! All listeners: bound, changed in place, and withdrawn, one without touching another.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    chain::{ChainError, Chains, Parts},
    connection::{self, Accepted},
    original::{self, Directory, Target},
};
use crate::{
    config::{Listener, RouteSource},
    forward::RouteSlot,
    limits,
    outbound::Limit,
    route::{HostIndex, RouteTable},
    shared::Shared,
    telemetry::ListenerStats,
};

/// Between attempts to bind an address that is taken, perhaps by a listener or process that is about to leave.
const BIND_RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// After an error of `accept`, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub struct Listeners {
    shared: Arc<Shared>,
    state: Mutex<State>,
    bound: watch::Sender<Bound>,
    tracker: TaskTracker,
    directory: Directory,
    /// What is left is to be closed now.
    cut: CancellationToken,
}

/// Sockets by name of the listener and position of the address in its configuration.
pub type Bound = BTreeMap<String, BTreeMap<usize, SocketAddr>>;

#[derive(Debug, Default)]
struct State {
    listeners: BTreeMap<String, Active>,
    routes: BTreeMap<String, RouteSlot>,
}

#[derive(Debug)]
struct Active {
    chains: Arc<ArcSwap<Chains>>,
    stats: Arc<ListenerStats>,
    connections: Arc<Limit>,
    /// Ends accepting.
    stop: CancellationToken,
    /// Those that it has sockets at.
    addresses: Vec<SocketAddr>,
}

impl Listeners {
    /// None yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            state: Mutex::default(),
            bound: watch::Sender::default(),
            tracker: TaskTracker::new(),
            directory: Directory::default(),
            cut: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New connections and requests use this table from now on.
    pub fn set_routes(&self, table: Arc<RouteTable>) {
        slot(&mut self.state().routes, &table.name).store(table);
    }

    /// No listener names it any more.
    pub fn remove_routes(&self, name: &str) {
        self.state().routes.remove(name);
    }

    /// Binds a listener, or changes it: connections of chains that stay as they are do not notice.
    ///
    /// # Errors
    /// Its TLS cannot be configured. The former version goes on then.
    pub fn serve(&self, listener: Arc<Listener>) -> Result<(), ChainError> {
        let mut state = self.state();
        let state = &mut *state;
        let name = listener.name.clone();
        let stats = self.shared.stats.listener(&name);
        let routes = Mutex::new(&mut state.routes);
        let find = |source: &RouteSource| match source {
            RouteSource::Inline(table) => Arc::new(ArcSwap::new(table.clone())),
            RouteSource::Rds(name) => slot(&mut routes.lock().unwrap_or_else(PoisonError::into_inner), name),
        };
        let parts = Parts { shared: &self.shared, stats: &stats, routes: &find };
        let former = state.listeners.get(&name);
        let former_chains = former.map(|active| active.chains.load_full());
        // At other addresses everything is new: what stands is to finish.
        let kept = former_chains.as_deref().filter(|old| old.listener.sits_alike(&listener));
        let mut chains = Chains::build(listener.clone(), &parts, kept)?;
        if let Some(former) = &former_chains {
            chains.replace(former);
        }
        if let (Some(active), Some(old)) = (former, &former_chains)
            && old.listener.sits_alike(&listener)
        {
            active.chains.store(Arc::new(chains));
            tracing::info!(listener = %name, "listener is changed");
            return Ok(());
        }
        let active = Active {
            chains: Arc::new(ArcSwap::from_pointee(chains)),
            stats,
            connections: Limit::new(limits::LISTENER_CONNECTIONS as u32),
            stop: CancellationToken::new(),
            addresses: if listener.binds { listener.addresses.clone() } else { Vec::new() },
        };
        let former = state.listeners.remove(&name);
        if let Some(former) = former {
            // The addresses have changed: connections that stand finish where they are.
            former.stop.cancel();
            self.bound.send_if_modified(|bound| bound.remove(&name).is_some());
        }
        let target = Target {
            chains: active.chains.clone(),
            stats: active.stats.clone(),
            connections: active.connections.clone(),
        };
        for (position, address) in active.addresses.iter().enumerate() {
            let accepting = Accepting {
                name: name.clone(),
                position,
                target: target.clone(),
                directory: self.directory.clone(),
                shared: self.shared.clone(),
                tracker: self.tracker.clone(),
                cut: self.cut.clone(),
                bound: self.bound.clone(),
            };
            self.tracker.spawn(accept_loop(accepting, *address, listener.clone(), active.stop.clone()));
        }
        self.directory.enter(&listener, target);
        state.listeners.insert(name, active);
        Ok(())
    }

    /// Closes the socket and lets connections finish.
    pub fn withdraw(&self, name: &str) {
        if let Some(active) = self.state().listeners.remove(name) {
            active.stop.cancel();
            self.directory.leave(name);
            active.chains.load().drain();
            self.bound.send_if_modified(|bound| bound.remove(name).is_some());
            self.shared.stats.forget_listener(name);
            tracing::info!(listener = %name, "listener is withdrawn");
        }
    }

    /// Where listeners are bound, as it changes.
    pub fn bound(&self) -> watch::Receiver<Bound> {
        self.bound.subscribe()
    }

    /// Whether every listener has its sockets.
    pub fn all_bound(&self) -> bool {
        let bound = self.bound.borrow();
        let state = self.state();
        state.listeners.iter().all(|(name, l)| bound.get(name).map_or(0, BTreeMap::len) == l.addresses.len())
    }

    /// Stops accepting, lets requests finish for as long as `limit`, then closes what is left.
    pub async fn drain(&self, limit: Duration) {
        let all = std::mem::take(&mut self.state().listeners);
        for active in all.values() {
            active.stop.cancel();
            active.chains.load().drain();
        }
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.tracker.len(), "drain deadline is over: closing what is left");
            self.cut.cancel();
            self.tracker.wait().await;
        }
    }
}

fn slot(routes: &mut BTreeMap<String, RouteSlot>, name: &str) -> RouteSlot {
    let empty = || {
        // Never served from: a listener waits for its routes.
        let table = RouteTable {
            name: name.to_owned(),
            vhosts: vec![],
            ignore_port: false,
            index: HostIndex::default(),
        };
        Arc::new(ArcSwap::from_pointee(table))
    };
    routes.entry(name.to_owned()).or_insert_with(empty).clone()
}

struct Accepting {
    name: String,
    position: usize,
    target: Target,
    directory: Directory,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    cut: CancellationToken,
    bound: watch::Sender<Bound>,
}

fn bind(address: SocketAddr, listener: &Listener) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    listener.socket.apply(&socket)?;
    socket.bind(address)?;
    socket.listen(listener.backlog)
}

async fn accept_loop(
    accepting: Accepting,
    address: SocketAddr,
    listener: Arc<Listener>,
    stop: CancellationToken,
) {
    let mut told = false;
    let (mut pause, longest) = BIND_RETRY;
    let listener = loop {
        match bind(address, &listener) {
            Ok(listener) => break listener,
            // Not worth a word while a former listener is just leaving.
            Err(error) if !told && pause > Duration::from_millis(100) => {
                tracing::warn!(listener = %accepting.name, %address, %error, "cannot listen; trying again");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(longest);
    };
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!(listener = %accepting.name, address = %bound, "listening");
    accepting.bound.send_if_modified(|all| {
        // Under the lock of the map: a listener that is withdrawn now takes its entry with it, or finds none.
        let current = !stop.is_cancelled();
        if current {
            all.entry(accepting.name.clone()).or_default().insert(accepting.position, bound);
        }
        current
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, client)) => accepting.spawn(stream, client, bound),
            Err(error) => {
                tracing::warn!(listener = %accepting.name, %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Accepting {
    fn spawn(&self, stream: TcpStream, client: SocketAddr, bound: SocketAddr) {
        let chains = self.target.chains.load_full();
        let own = &chains.listener;
        let wanted = own.filters.original_destination;
        let asked =
            wanted.then(|| original::destination(&stream, own.socket.is_transparent(), bound)).flatten();
        let other = asked.filter(|_| own.filters.handed_on).and_then(|asked| self.directory.find(asked));
        let (target, chains) = match other {
            Some(other) => {
                let chains = other.chains.load_full();
                (other, chains)
            }
            None => (self.target.clone(), chains),
        };
        let Target { stats, connections, .. } = target;
        stats.connections.fetch_add(1, Ordering::Relaxed);
        let Some(admitted) = self.shared.overload.admit() else { return };
        let Some(permit) = connections.try_take() else {
            // Closing is the only answer that costs nothing.
            stats.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let accepted =
            Accepted { stream, client, asked, chains, stats: stats.clone(), shared: self.shared.clone() };
        let cut = self.cut.clone();
        stats.active_connections.fetch_add(1, Ordering::Relaxed);
        self.tracker.spawn(async move {
            tokio::select! {
                () = connection::serve(accepted) => {}
                () = cut.cancelled() => {}
            }
            stats.active_connections.fetch_sub(1, Ordering::Relaxed);
            drop((permit, admitted));
        });
    }
}
