//! Objects from the Kubernetes API, watched by the leader and committed like anybody else's.
//!
//! `convert` decides, this shell watches. It follows kube's watcher, which lists again after every gap; no test
//! here runs it against a real API server.

pub mod convert;

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use mesh_model::resource::Kind;
use tokio::time::{sleep, timeout};

use self::convert::{Follower, WatchEvent};
use crate::{app::App, raft::WriteError};

/// How often leadership is looked at, and the pause after a failure.
const LOOK: Duration = Duration::from_secs(1);
/// Attempts to commit one object before it is left to the next list.
const ATTEMPTS: usize = 5;

/// Watches every kind while this replica leads.
pub async fn run(app: Arc<App>) {
    loop {
        while !app.replica.is_leader() {
            sleep(LOOK).await;
        }
        match Client::try_default().await {
            Ok(client) => {
                tracing::info!("watching the Kubernetes API");
                let kinds = Kind::ALL.map(|kind| watch(app.clone(), client.clone(), kind));
                tokio::select! {
                    _ = futures::future::join_all(kinds) => {}
                    () = until_deposed(&app) => {}
                }
            }
            Err(error) => tracing::error!(%error, "--kubernetes: no API server is configured"),
        }
        sleep(LOOK).await;
    }
}

async fn until_deposed(app: &App) {
    while app.replica.is_leader() {
        sleep(LOOK).await;
    }
}

async fn watch(app: Arc<App>, client: Client, kind: Kind) {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind.as_str()));
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut events = pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    let mut follower = Follower::new(kind);
    while let Some(event) = events.next().await {
        let event = match event.map(plain) {
            Ok(Some(event)) => event,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%kind, %error, "cannot watch; trying again");
                continue;
            }
        };
        match follower.follow(event, &app.replica.applied()) {
            Ok(Some(command)) => commit(&app, command).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(%kind, %error, "an object of Kubernetes can't be used here"),
        }
    }
}

async fn commit(app: &App, command: mesh_store::Command) {
    for _ in 0..ATTEMPTS {
        match app.replica.write(command.clone()).await {
            Ok(_) => return,
            Err(WriteError::Refused(refusal)) => {
                tracing::warn!(%refusal, "an object of Kubernetes is refused");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot commit an object of Kubernetes yet");
                let _ = timeout(LOOK, app.replica.changes().changed()).await;
            }
        }
    }
}

fn plain(event: Event<DynamicObject>) -> Option<WatchEvent> {
    let value = |object: DynamicObject| serde_json::to_value(object).ok();
    match event {
        Event::Init => Some(WatchEvent::Listing),
        Event::InitApply(object) => value(object).map(WatchEvent::Listed),
        Event::InitDone => Some(WatchEvent::ListedAll),
        Event::Apply(object) => value(object).map(WatchEvent::Applied),
        Event::Delete(object) => value(object).map(WatchEvent::Deleted),
    }
}
