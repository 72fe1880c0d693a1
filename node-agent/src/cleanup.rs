//! Removes what agents made, by exact names: links, routes, rules, programs and the socket. For drained nodes.

use std::fs;

use anyhow::Context;

use crate::{
    bootstrap::NodeState,
    cni::{HostNet, Registry},
    config::CleanupArgs,
    kernel, masquerade, routes,
};

/// Cleans up after agents with these directories. What is gone already is fine; the key and the certificate stay.
///
/// # Errors
/// The first thing that could not be removed.
pub async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let host = HostNet::new().context("netlink")?;
    if let Some(state) = NodeState::load(&args.state_dir)? {
        let mut registry = Registry::open(&args.state_dir, state.pod_cidr)?;
        let known: Vec<_> = registry.iter().cloned().collect();
        for endpoint in known {
            // The link first: without programs its traffic would not be judged. Another plugin's is its own to remove.
            if !endpoint.chained {
                host.remove(&endpoint.host_interface).await?;
            }
            registry.remove(&endpoint.key())?;
        }
    }
    routes::remove_all(&host).await.context("removing routes")?;
    routes::to_proxy::remove(&host).await.context("removing the rules for proxies")?;
    masquerade::remove().await.context("removing the masquerading rules")?;
    if args.bpffs.exists() {
        kernel::unload(&args.bpffs)?;
    }
    match fs::remove_file(&args.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", args.socket.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
