//! What the kernel has to know for policies for the node itself: the node's own addresses, and where the control plane
//! listens, which no policy cuts off.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{bootstrap::Upstream, cni::HostNet, engine::Engine};

/// Between two looks: an address that is added is under policy that much later.
const EVERY: Duration = Duration::from_secs(1);
/// Between two questions for the addresses of replicas that are known by name.
const ASK_EVERY: u32 = 30;

/// All that is known now. A replica whose name has no address at the moment keeps those that it had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    locals: BTreeSet<IpAddr>,
    control: BTreeSet<SocketAddr>,
}

impl Known {
    /// Looks, and tells the kernel if something is another. Names are asked for only where `ask` says so.
    ///
    /// # Errors
    /// The kernel, or netlink, refused.
    pub async fn refresh(
        &mut self,
        net: &HostNet,
        upstream: &Upstream,
        engine: &Engine,
        ask: bool,
    ) -> anyhow::Result<()> {
        let mut control = if ask { BTreeSet::new() } else { self.control.clone() };
        for replica in upstream.replicas().iter().filter(|_| ask) {
            match tokio::net::lookup_host(replica).await {
                Ok(found) => control.extend(found),
                Err(error) => {
                    tracing::warn!(replica, %error, "the replica's address is not known");
                    control.extend(&self.control);
                }
            }
        }
        let fresh = Self { locals: net.addresses().await?, control };
        if fresh != *self {
            engine.set_host(&fresh.locals, &fresh.control)?;
            *self = fresh;
        }
        Ok(())
    }

    /// For ever. Stop it by dropping the future.
    pub async fn refresh_for_ever(mut self, net: HostNet, upstream: Upstream, engine: Engine) {
        let mut looks = 0_u32;
        loop {
            tokio::time::sleep(EVERY).await;
            looks = looks.wrapping_add(1);
            if let Err(error) = self.refresh(&net, &upstream, &engine, looks % ASK_EVERY == 0).await {
                tracing::error!(%error, "this node's addresses are not known to the kernel");
            }
        }
    }
}
