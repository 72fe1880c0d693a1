//! Names end. Those of addresses that somebody is connected to are of use to these connections until they end too.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{bootstrap::unix_now, engine::Engine, flows::monotonic_nanos, kernel::Connections};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Has names lapse and be forgotten, for ever. Stop it by dropping the future.
pub async fn keep_for_ever(engine: Engine, connections: Connections) {
    let connections = Arc::new(connections);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let lapsed = match engine.lapse_names(unix_now()) {
            Ok(lapsed) if lapsed.is_empty() => continue,
            Ok(lapsed) => lapsed,
            Err(error) => {
                tracing::error!(%error, "names that have ended are still allowed");
                continue;
            }
        };
        // Nothing new begins with these any more, so a look that begins now misses none of their connections.
        match connected(connections.clone(), lapsed.clone()).await {
            Ok(connected) => {
                let gone = lapsed.difference(&connected).copied().collect();
                if let Err(error) = engine.forget_names(&gone) {
                    tracing::error!(%error, "names that nobody is connected by can't be forgotten");
                }
            }
            Err(error) => tracing::error!(error, "who is connected by names can't be seen"),
        }
    }
}

/// On a thread of its own: it waits between its steps, and must not keep the agent from ending.
async fn connected(
    connections: Arc<Connections>,
    addresses: BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, String> {
    let (tell, told) = oneshot::channel();
    let look = move || {
        let found = connections.with(&addresses, monotonic_nanos());
        let _ = tell.send(found.map_err(|error| error.to_string()));
    };
    std::thread::Builder::new().name("names".to_owned()).spawn(look).map_err(|error| error.to_string())?;
    told.await.map_err(|error| error.to_string())?
}
