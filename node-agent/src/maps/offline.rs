//! What the maps are to hold, and whether they do, without an agent: from what the last one remembered.

use std::path::Path;

use anyhow::Context;

use super::{MapError, Maps, Verified};
use crate::{
    bootstrap::NodeState,
    cni::{Registry, pod_of, ports_of},
    desired::{Desired, MapOp, PodAddresses},
    engine::Engine,
    kernel,
    subscribe::{Cache, Resources},
};
use ebpf_shared::{Direction, Metric, Reason};

/// No kernel: takes writes for made, and is asked only for what was written.
#[derive(Debug, Default)]
pub struct OnPaper(pub Desired);

impl Maps for OnPaper {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        Ok(self.0.clone())
    }

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        ops.iter().for_each(|op| op.apply(&mut self.0));
        Ok(())
    }

    fn attach(&mut self, _: &str, _: u32) -> Result<(), MapError> {
        Ok(())
    }

    fn detach(&mut self, _: &str, _: u32) -> Result<(), MapError> {
        Ok(())
    }

    fn attached(&mut self) -> Result<Vec<u32>, MapError> {
        Ok(Vec::new())
    }

    fn lost_events(&mut self) -> u64 {
        0
    }

    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)> {
        Vec::new()
    }
}

/// Compares the kernel with what the resources and the pods that an agent remembered in its state directory make of it. An
/// agent that was killed may have written what it had no time to remember: up to a tenth of a second.
///
/// # Errors
/// The directory is none of an agent, or the maps can't be read.
pub fn verify_offline(state_dir: &Path, bpffs: &Path) -> anyhow::Result<Vec<Verified>> {
    let dir = || format!("--state-dir {}", state_dir.display());
    let state = crate::bootstrap::NodeState::load(state_dir).with_context(dir)?;
    let state: NodeState = state.with_context(|| format!("{}: no agent has registered here", dir()))?;
    let cache = Cache::new(state_dir).with_context(dir)?;
    let updates = cache.load();
    let mut resources = Resources::default();
    for update in &updates {
        resources.apply(update).map_err(|error| anyhow::anyhow!("{}: {error}", dir()))?;
    }
    let me = resources.nodes.get(&state.node);
    let me = me.with_context(|| format!("{}: nothing is remembered of node {}", dir(), state.node))?;
    let addresses = PodAddresses { v4: me.address, v6: me.address6 };
    let held = kernel::look(bpffs).with_context(|| format!("--bpffs {}", bpffs.display()))?;
    let engine = Engine::new(addresses, Box::new(OnPaper(held.into())))?;
    for update in &updates {
        engine.load(update).map_err(|reason| anyhow::anyhow!("{}: {reason}", dir()))?;
    }
    let registry = Registry::open(state_dir, state.pod_cidr)?;
    for pod in registry.iter().filter(|pod| pod.ready) {
        engine.lead_ports(pod.workload.clone(), ports_of(pod));
        engine.load_pod(pod.workload.clone(), pod_of(pod));
    }
    engine.set_gateways(registry.gateways());
    engine.synchronise()?;
    Ok(engine.verify(bpffs)?)
}
