//! A replica whose disk can't be believed: it neither votes nor serves, says so, and comes back from the others.
//!
//! What it must not do is take part again under its number: it may have forgotten a vote, or an entry that others
//! count on, and with the same number a second vote or a shorter log would be believed. So it takes another number.
//! A majority of the *others* has to agree: one command in the log removes the old number and gives the new one, and
//! without a majority that does not count the damaged replica nothing is committed. Entries that it had acknowledged
//! are with that majority still, because it took part in none of its decisions since. The new number starts with an
//! empty log, as a learner without a vote, is fed by snapshot and votes once it has caught up.
//!
//! The damaged store is kept aside. Its keys stay: the disk is in doubt, not the machine.
//!
//! This is done without being asked once. While a store is kept aside from an earlier time, somebody should look at
//! the disk first: then it waits for `clustermesh replica rejoin`.
//!
//! The service manager is told that the start is over, and why nobody is served: it would end a start that takes too
//! long, and with it the door through which somebody can say `rejoin`.

mod contacts;
mod door;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use futures::future::join_all;
use mesh_model::identity::TrustDomain;
use mesh_tls::shared_bundles;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;
use xds_proto::isthmus::admin::v1::{RejoinResponse, ReplaceRequest, recovery_client::RecoveryClient};

use crate::{
    app::trust_bundles,
    ca::{Ca, unix},
    config::Config,
    doors,
    group::Group,
    notify::Notifier,
    raft,
    replicas::Replicas,
};

pub use contacts::{keep as keep_contacts, some as has_contacts};

/// Between two rounds of asking the others.
const RETRY: Duration = Duration::from_secs(2);
/// For one of the others to answer: a write among them.
const ANSWER: Duration = Duration::from_secs(12);
/// How a store that is kept aside is called.
const KEPT: &str = "raft.damaged-";

/// What the replica says of itself meanwhile.
#[derive(Debug)]
struct Quarantined {
    id: u64,
    cluster: String,
    trust_domain: TrustDomain,
    address: String,
    damage: String,
    /// Why it does not go on by itself.
    waits: Option<String>,
    /// What became of the last attempt.
    attempt: Mutex<String>,
    asked: Notify,
    left: watch::Sender<Option<RejoinResponse>>,
}

impl Quarantined {
    fn sentence(&self) -> String {
        let attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waits = self.waits.as_ref().map(|waits| format!("; {waits}")).unwrap_or_default();
        let attempt = if attempt.is_empty() { String::new() } else { format!("; last attempt: {attempt}") };
        format!("replica {} neither votes nor serves: {}{waits}{attempt}", self.id, self.damage)
    }

    fn note(&self, attempt: String) {
        *self.attempt.lock().unwrap_or_else(PoisonError::into_inner) = attempt;
    }
}

/// Returns once the others have given this replica a new number, under which it may start with an empty log. Whoever
/// connects to one of its `ports` meanwhile is turned away at once.
///
/// # Errors
/// The socket is taken, or the folder can't be written.
pub async fn leave<'a>(
    config: &Config,
    ca: Ca,
    damage: String,
    notifier: &Notifier,
    ports: impl IntoIterator<Item = &'a TcpListener>,
) -> anyhow::Result<Ca> {
    // Without it the kernel would take connections that nobody answers, and clients would wait.
    let away = async {
        join_all(ports.into_iter().map(turn_away)).await;
        // There were no ports.
        std::future::pending().await
    };
    tokio::select! {
        ca = ask_to_leave(config, ca, damage, notifier) => ca,
        ca = away => ca,
    }
}

/// Accepts and closes: a client hears at once that it should go to another replica.
async fn turn_away(port: &TcpListener) {
    loop {
        match port.accept().await {
            Ok((connection, _)) => drop(connection),
            // No file descriptors, for instance: it passes.
            Err(error) => {
                tracing::debug!(%error, "a connection was not turned away");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn ask_to_leave(config: &Config, ca: Ca, damage: String, notifier: &Notifier) -> anyhow::Result<Ca> {
    let now = SystemTime::now();
    ca.renew_own(now).context("this replica's certificate")?;
    let own = ca.replica().clone();
    let bundles = shared_bundles(trust_bundles(&ca, &mesh_store::State::default()));
    let others = Replicas::new(ca.own().clone(), bundles, own.trust_domain.clone());
    let contacts = contacts::read(&config.data_dir, own.id);
    let earlier = kept(&config.data_dir)?;
    let waits = match (&earlier, contacts.is_empty()) {
        (Some(folder), _) => Some(format!(
            "{} was kept from an earlier time: look at the disk, then run 'clustermesh replica rejoin'",
            folder.display()
        )),
        (None, true) => {
            Some("it knows of no other replica: restore a backup, or join with a new token".to_owned())
        }
        (None, false) => None,
    };
    let shared = Arc::new(Quarantined {
        id: own.id,
        cluster: own.cluster.clone(),
        trust_domain: own.trust_domain.clone(),
        address: config.advertised(),
        damage,
        waits,
        attempt: Mutex::default(),
        asked: Notify::new(),
        left: watch::Sender::new(None),
    });
    tracing::error!(sentence = shared.sentence(), "the disk can't be believed");
    let socket = doors::local::bind(&config.admin_socket)?;
    let stop = CancellationToken::new();
    let door = tokio::spawn(door::serve(shared.clone(), socket, stop.clone().cancelled_owned()));
    notifier.ready(&in_quarantine(&shared));
    if shared.waits.is_some() {
        shared.asked.notified().await;
    }
    let new_id = loop {
        // The others remove the old number when they give the new one: first, whether it could start.
        let answer = match raft::room_for_another(&config.data_dir) {
            Ok(()) => ask_all(&others, &contacts, &config.advertised()).await,
            Err(error) => Err(format!("a new log needs room beside the damaged one: {error}")),
        };
        match answer {
            Ok(id) => break id,
            Err(reason) => {
                tracing::warn!(reason, "the others have given no new number yet");
                shared.note(reason);
                notifier.status(&in_quarantine(&shared));
            }
        }
        let _ = tokio::time::timeout(RETRY, shared.asked.notified()).await;
    };
    let aside = keep_aside(&config.data_dir, own.id, unix(now))?;
    // In this order: a crash in between leaves a number whose log is gone, and never the old one with an empty log.
    let ca = ca.renumbered(new_id)?;
    let keys = config.data_dir.join("keys");
    if let Some(group) = Group::open(&keys)? {
        Group { member: false, ..group }.keep(&keys)?;
    }
    let kept = aside.map(|folder| folder.display().to_string()).unwrap_or_default();
    tracing::warn!(old = own.id, new = new_id, kept, "comes back with an empty log");
    notifier.status(&format!("replica {} comes back as {new_id} with an empty log", own.id));
    shared.left.send_replace(Some(RejoinResponse { old_id: own.id, new_id, kept }));
    stop.cancel();
    // Its answers are on their way; what it says of its end is of no use here.
    let _ = tokio::time::timeout(RETRY, door).await;
    Ok(ca)
}

/// For `systemctl status`.
fn in_quarantine(shared: &Quarantined) -> String {
    format!("quarantined: {}", shared.sentence())
}

/// Asks one after the other: whichever answers has written it with a majority.
async fn ask_all(others: &Replicas, contacts: &[String], address: &str) -> Result<u64, String> {
    let mut reasons = Vec::new();
    for contact in contacts {
        let channel = match others.channel(contact) {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(format!("{contact}: {error}"));
                continue;
            }
        };
        let request = ReplaceRequest { address: address.to_owned() };
        let mut client = RecoveryClient::new(channel);
        match tokio::time::timeout(ANSWER, client.replace(request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner().new_id),
            Ok(Err(status)) => reasons.push(format!("{contact}: {}", status.message())),
            Err(_) => reasons.push(format!("{contact}: no answer within {} s", ANSWER.as_secs())),
        }
    }
    Err(if reasons.is_empty() { "no other replica is known".to_owned() } else { reasons.join("; ") })
}

/// A store that was kept aside.
fn kept(data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    for item in std::fs::read_dir(data_dir).with_context(|| data_dir.display().to_string())? {
        let item = item?;
        if item.file_name().to_string_lossy().starts_with(KEPT) {
            return Ok(Some(item.path()));
        }
    }
    Ok(None)
}

/// Moves the damaged store out of the way. None if there is nothing left of it.
fn keep_aside(data_dir: &Path, id: u64, now_unix: u64) -> anyhow::Result<Option<PathBuf>> {
    let raft = data_dir.join("raft");
    if !raft.exists() {
        return Ok(None);
    }
    let aside = data_dir.join(format!("{KEPT}{now_unix}-replica-{id}"));
    std::fs::rename(&raft, &aside).with_context(|| format!("{} can't be kept aside", raft.display()))?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_store_is_kept_under_a_name_that_says_when_and_whose() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(keep_aside(dir.path(), 2, 77).expect("nothing to do"), None);
        assert_eq!(kept(dir.path()).expect("readable"), None);
        std::fs::create_dir(dir.path().join("raft")).expect("made");
        let aside = keep_aside(dir.path(), 2, 77).expect("moved").expect("there was one");
        assert_eq!(aside, dir.path().join("raft.damaged-77-replica-2"));
        assert_eq!(kept(dir.path()).expect("readable"), Some(aside));
        assert!(!dir.path().join("raft").exists());
    }
}
