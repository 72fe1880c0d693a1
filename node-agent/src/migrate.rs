//! An upgrade to another map format, from the agent's side: each pod changes over when its policy is in the new maps.

use std::{collections::BTreeMap, time::Duration};

use mesh_model::resource::NamespacedName;
use xds_proto::isthmus::agent::v1::Service;

use crate::{engine::Engine, maps::MapError};

/// After a refusal of the kernel.
const RETRY: Duration = Duration::from_secs(1);

/// Pods that the old programs guard: the host's interface and its index.
pub type Waiting = BTreeMap<NamespacedName, (String, u32)>;

/// Changes over whoever can, and tells whether all is done. Nobody waits for whoever has no policy yet: its old one goes on.
///
/// # Errors
/// The kernel refused.
pub fn step(engine: &Engine, waiting: &mut Waiting) -> Result<bool, MapError> {
    // One that is gone is not waited for.
    waiting.retain(|pod, _| engine.has_pod(pod));
    let ready: Vec<_> = waiting.keys().filter(|pod| engine.enforced(pod).is_some()).cloned().collect();
    for pod in ready {
        if let Some((interface, ifindex)) = waiting.get(&pod) {
            engine.attach(interface, *ifindex)?;
            waiting.remove(&pod);
        }
    }
    // Sockets as well look for services in the new maps only when these are there.
    if !waiting.is_empty() || !engine.resources(|resources| resources.heard::<Service>()) {
        return Ok(false);
    }
    engine.finish_migration()?;
    Ok(true)
}

/// Goes on until all is done. Stop it by dropping the future.
pub async fn go_on(engine: Engine, mut waiting: Waiting) {
    let mut changes = engine.changes();
    loop {
        changes.borrow_and_update();
        match step(&engine, &mut waiting) {
            Ok(true) => break,
            Ok(false) => {
                if changes.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "pods stay with the programs of the older map format; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    tracing::info!("the kernel's maps have this release's format");
    // The agent takes a part that ends for one that failed.
    std::future::pending::<()>().await;
}
