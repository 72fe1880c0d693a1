//! Streams that stand: so many of all workloads together, and of each no more than its share.

use std::{sync::Arc, time::Duration};

use mesh_model::resource::NamespacedName;
use mesh_tls::{Entered, Sources};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

use super::{CallerInfo, Callers};

/// Of all workloads together: Envoy opens one for each secret that it names.
const MOST: usize = 4096;
/// Of one workload, which is what a pod is attested as before it has said anything.
const MOST_OF_WORKLOAD: usize = 64;
/// Of processes of the node that have not said yet which gateway they are.
const MOST_UNNAMED: usize = 64;
/// A stream that says nothing at all is ended.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// Counts the streams of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Slots {
    all: Arc<Semaphore>,
    by_workload: Sources<NamespacedName>,
    unnamed: Sources<()>,
    /// [`FIRST_REQUEST`], but in tests.
    pub(super) patience: Duration,
}

/// A stream, counted until dropped.
#[derive(Debug)]
pub struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_workload: Entered<NamespacedName>,
}

/// A stream that has been opened, and has said nothing yet.
#[derive(Debug)]
pub enum Opened {
    /// By a pod.
    Pod(Slot),
    /// By a process of the node.
    Unnamed(Entered<()>),
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MOST)),
            by_workload: Sources::at_most(MOST_OF_WORKLOAD),
            unnamed: Sources::at_most(MOST_UNNAMED),
            patience: FIRST_REQUEST,
        }
    }
}

impl Slots {
    /// Streams that are open.
    pub fn taken(&self) -> usize {
        MOST.saturating_sub(self.all.available_permits())
    }

    /// Takes a slot for a workload.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: it has enough, or all together have.
    pub fn take(&self, workload: &NamespacedName) -> Result<Slot, Status> {
        let full = |what: String| Status::resource_exhausted(format!("{what} are open already"));
        let of_workload = self.by_workload.enter(workload.clone());
        let _of_workload =
            of_workload.ok_or_else(|| full(format!("{MOST_OF_WORKLOAD} streams of {workload}")))?;
        let of_all = self.all.clone().try_acquire_owned();
        let _of_all = of_all.map_err(|_| full(format!("{MOST} streams")))?;
        Ok(Slot { _of_all, _of_workload })
    }

    /// Takes a slot for whoever opens a stream.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`: it is nobody; `RESOURCE_EXHAUSTED`: it has enough.
    pub fn open(&self, callers: &Callers, caller: &CallerInfo) -> Result<Opened, Status> {
        if let Some(pod) = callers.pod_or_root(caller)? {
            return self.take(&pod).map(Opened::Pod);
        }
        let full = || Status::resource_exhausted(format!("{MOST_UNNAMED} streams wait for a first request"));
        self.unnamed.enter(()).map(Opened::Unnamed).ok_or_else(full)
    }

    /// The first request, and whose stream it is; `None`: it has ended before.
    ///
    /// # Errors
    /// As [`Self::open`]; `DEADLINE_EXCEEDED`: there was no request in time.
    pub async fn first<Q>(
        &self,
        opened: Opened,
        callers: &Callers,
        caller: &CallerInfo,
        requests: &mut Streaming<Q>,
        node_id: impl Fn(&Q) -> &str,
    ) -> Result<Option<(Q, Standing)>, Status> {
        let late = |_| Status::deadline_exceeded(format!("no request within {:?}", self.patience));
        let first = tokio::time::timeout(self.patience, requests.message()).await.map_err(late)??;
        let Some(first) = first else { return Ok(None) };
        let node_id = node_id(&first).to_owned();
        let workload = callers.workload(caller, &node_id)?;
        let slot = match opened {
            Opened::Pod(slot) => slot,
            Opened::Unnamed(_) => self.take(&workload)?,
        };
        let standing =
            Standing { callers: callers.clone(), caller: caller.clone(), node_id, workload, _slot: slot };
        Ok(Some((first, standing)))
    }
}

/// A stream of a workload.
#[derive(Debug)]
pub struct Standing {
    callers: Callers,
    caller: CallerInfo,
    node_id: String,
    workload: NamespacedName,
    _slot: Slot,
}

impl Standing {
    /// Whose it is.
    pub fn workload(&self) -> &NamespacedName {
        &self.workload
    }

    /// Whether it still is: its pod may be gone, and another one have come with its name.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`: it is not.
    pub fn attest(&self) -> Result<(), Status> {
        let gone = || Status::permission_denied(format!("{} does not run here any more", self.workload));
        match self.callers.workload(&self.caller, &self.node_id) {
            Ok(workload) if workload == self.workload => Ok(()),
            Ok(_) | Err(_) => Err(gone()),
        }
    }
}
