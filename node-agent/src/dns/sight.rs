//! What the kernel knows of addresses, whether or not the agent is there.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use dns_proxy::Sight;
use ebpf_shared::identity;

use crate::kernel::IdentitySight;

/// The pinned maps, once there are any. Cheap to clone.
#[derive(Clone)]
pub(super) struct KernelSight {
    bpffs: PathBuf,
    maps: Arc<ArcSwapOption<IdentitySight>>,
}

impl KernelSight {
    pub(super) fn new(bpffs: PathBuf) -> Self {
        let sight = Self { bpffs, maps: Arc::default() };
        sight.reopen();
        sight
    }

    /// An agent has come: another one may use other maps than the one before.
    pub(super) fn reopen(&self) {
        match IdentitySight::open(&self.bpffs) {
            Ok(maps) => self.maps.store(Some(Arc::new(maps))),
            Err(error) => tracing::warn!(%error, "the kernel's identities can't be seen"),
        }
    }
}

impl Sight for KernelSight {
    /// Of an address that can't be looked up nothing is known: no rule names [`identity::ANY`].
    fn identity(&self, address: IpAddr) -> u32 {
        let maps = self.maps.load();
        let known = maps.as_ref().map(|maps| maps.identity(address));
        match known {
            Some(Ok(known)) => known,
            Some(Err(error)) => {
                tracing::warn!(%address, %error, "whose an address is can't be seen");
                identity::ANY
            }
            None => identity::ANY,
        }
    }

    fn knows(&self, address: IpAddr) -> bool {
        let maps = self.maps.load();
        maps.as_ref().is_some_and(|maps| matches!(maps.host(address), Ok(Some(_))))
    }
}
