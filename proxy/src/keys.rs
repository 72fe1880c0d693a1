//! Keys of token issuers: asked for when they are needed or before, kept for a while, and asked for again when a token
//! names one that is not among them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::Request;

use crate::{
    limits,
    outbound::{CallError, fetch},
    policy::jwt::{KeySet, RemoteKeys},
    shared::Shared,
};

/// Keys by where they come from.
#[derive(Debug, Default)]
pub struct KeyCache(Mutex<HashMap<Arc<RemoteKeys>, Arc<Entry>>>);

#[derive(Debug, Default)]
struct Entry {
    state: Mutex<State>,
    /// Held while they are asked for: whoever comes meanwhile waits for the same answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, Clone)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// When the keys came.
    since: Option<Instant>,
    /// When they were asked for last.
    asked: Option<Instant>,
}

impl State {
    fn fresh(&self, remote: &RemoteKeys, now: Instant) -> Option<&Arc<KeySet>> {
        let age = now.saturating_duration_since(self.since?);
        // Those that are asked for ahead count until others come: the issuer's trouble is not its users'.
        self.keys.as_ref().filter(|_| age < remote.cache || remote.ahead)
    }

    fn may_ask(&self, pause: std::time::Duration, now: Instant) -> bool {
        self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause)
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyCache {
    fn entry(&self, remote: &Arc<RemoteKeys>) -> Arc<Entry> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.get(remote) {
            return entry.clone();
        }
        if all.len() >= limits::JWKS_SETS {
            // Configurations come and go; whatever is still used is asked for again.
            all.clear();
        }
        all.entry(remote.clone()).or_default().clone()
    }

    /// The keys, from memory or from their server. `None`: there are none to be had now.
    pub async fn get(&self, shared: &Shared, remote: &Arc<RemoteKeys>) -> Option<Arc<KeySet>> {
        let entry = self.entry(remote);
        if let Some(keys) = entry.state().fresh(remote, Instant::now()) {
            return Some(keys.clone());
        }
        let _asking = entry.asking.lock().await;
        let state = entry.state().clone();
        if let Some(keys) = state.fresh(remote, Instant::now()) {
            return Some(keys.clone());
        }
        if !state.may_ask(remote.pause, Instant::now()) {
            return None;
        }
        ask(shared, remote, &entry).await
    }

    /// A token names a key that is not among `known`: newer keys, if there are any.
    pub async fn newer(
        &self,
        shared: &Shared,
        remote: &Arc<RemoteKeys>,
        known: &Arc<KeySet>,
    ) -> Option<Arc<KeySet>> {
        let entry = self.entry(remote);
        let _asking = entry.asking.lock().await;
        let state = entry.state().clone();
        if let Some(keys) = state.keys.as_ref().filter(|keys| !Arc::ptr_eq(keys, known)) {
            return Some(keys.clone());
        }
        if !state.may_ask(limits::JWKS_UNKNOWN_KEY, Instant::now()) {
            return None;
        }
        ask(shared, remote, &entry).await
    }

    /// Asks for keys before they are needed, and again before they are too old. Ends never.
    pub async fn keep(shared: std::sync::Weak<Shared>, remote: Arc<RemoteKeys>) {
        let early = remote.cache.saturating_sub(limits::JWKS_UNKNOWN_KEY).max(remote.pause);
        loop {
            let Some(shared) = shared.upgrade() else { return };
            let entry = shared.keys.entry(&remote);
            let known = entry.state().since.map(|since| since + early);
            let rest = known.unwrap_or_else(Instant::now).saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let _asking = entry.asking.lock().await;
                ask(&shared, &remote, &entry).await;
            }
            drop((entry, shared));
            tokio::time::sleep(rest.max(remote.pause)).await;
        }
    }
}

async fn ask(shared: &Shared, remote: &RemoteKeys, entry: &Entry) -> Option<Arc<KeySet>> {
    entry.state().asked = Some(Instant::now());
    for _ in 0..remote.attempts {
        match request(shared, remote).await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                let mut state = entry.state();
                state.keys = Some(keys.clone());
                state.since = Some(Instant::now());
                return Some(keys);
            }
            Err(error) => {
                let (cluster, path) = (&remote.cluster, &remote.path);
                tracing::warn!(%cluster, %path, %error, "keys of a token issuer cannot be had");
            }
        }
    }
    None
}

async fn request(
    shared: &Shared,
    remote: &RemoteKeys,
) -> Result<KeySet, Box<dyn std::error::Error + Send + Sync>> {
    let cluster =
        shared.cluster(&remote.cluster).ok_or_else(|| CallError::NoCluster(remote.cluster.clone()))?;
    let scheme = if cluster.config.tls.is_some() { "https" } else { "http" };
    let request = Request::get(format!("{scheme}://{}{}", remote.authority, remote.path))
        .header("accept", "application/json")
        .body(bytes::Bytes::new())?;
    let response = fetch(&cluster, request, limits::JWKS_BYTES, remote.timeout).await?;
    if response.status() != 200 {
        return Err(format!("the answer is {}", response.status()).into());
    }
    Ok(KeySet::parse(response.body())?)
}
