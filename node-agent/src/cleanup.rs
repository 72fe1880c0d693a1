//! Removes what agents made, by exact names: links, routes, rules, programs, mounts and sockets. For drained nodes.

use std::{fs, io, path::Path};

use anyhow::Context;
use nix::{errno::Errno, mount::MntFlags};

use crate::{
    bootstrap::NodeState,
    cni::{HostNet, Registry},
    config::{CleanupArgs, beside},
    dns, kernel,
    made::{Ledger, Made},
    masquerade, persist, routes, tunnel,
};

/// Cleans up after agents with these directories. What is gone already is fine; the key, the certificate and the last
/// configuration in the state directory stay, and so do kernel settings (forwarding), which others may rely on by now.
///
/// # Errors
/// An agent runs, or the first thing that could not be removed. What has been removed by then is forgotten: the same
/// once more goes on from there.
pub async fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let mut ledger = Ledger::open(&args.state_dir)?;
    let mut made = ledger.newest_first();
    // Of releases that kept no ledger, and of whoever names it again.
    let hubble = args.socket.as_deref().map(beside);
    let named =
        [args.bpffs.clone().map(Made::Pins), args.socket.clone().map(Made::File), hubble.map(Made::File)];
    for extra in named.into_iter().flatten().chain([Made::Routes, Made::Tables]) {
        if !made.contains(&extra) {
            made.push(extra);
        }
    }
    for one in &made {
        if let Made::File(path) = one
            && std::os::unix::net::UnixStream::connect(path).is_ok()
        {
            anyhow::bail!("an agent serves {}: `node-agent stop` it first", path.display());
        }
    }
    let grace = kernel::Grace::open(&args.state_dir).context("/sys/kernel/rcu_expedited")?;
    let host = HostNet::new().context("netlink")?;
    if let Some(state) = NodeState::load(&args.state_dir)? {
        let mut registry = Registry::open(&args.state_dir, state.pod_cidr)?;
        let known: Vec<_> = registry.iter().cloned().collect();
        for endpoint in known {
            // The link first: without programs its traffic would not be judged. Another plugin's is its own to remove.
            if !endpoint.chained {
                let _short = grace.shorten();
                host.remove(&endpoint.host_interface).await?;
            }
            registry.remove(&endpoint.key())?;
        }
    }
    for one in made {
        remove(&one, &host).await.with_context(|| format!("removing {one:?}"))?;
        ledger.forget(&one)?;
    }
    Ok(())
}

async fn remove(made: &Made, host: &HostNet) -> anyhow::Result<()> {
    match made {
        Made::File(path) => persist::remove(path)?,
        Made::DnsProxy(lock) => {
            dns::lock::end(lock)?;
            persist::remove(lock)?;
        }
        Made::Routes => {
            routes::remove_all(host).await?;
            routes::to_proxy::remove(host).await?;
            tunnel::remove(host).await?;
        }
        Made::Tables => masquerade::remove().await?,
        Made::Pins(dir) if dir.exists() => kernel::unload(dir)?,
        Made::Pins(_) => {}
        Made::Mount(dir) => match nix::mount::umount2(dir, MntFlags::empty()) {
            // Not mounted, or gone: an earlier attempt, or the node has started anew.
            Err(Errno::EINVAL | Errno::ENOENT) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        },
        Made::Directory(dir) => remove_empty(dir)?,
    }
    Ok(())
}

/// A directory that others use by now stays.
fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(error)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
