//! The tunnel's device: one VXLAN interface without a peer of its own.

use ebpf_shared::overlay::{MAC, PORT};
use rtnetlink::{LinkUnspec, LinkVxlan};
use thiserror::Error;

use crate::cni::{HostNet, LinkError, prepare_tunnel};

/// Its name: nothing else is ever changed or removed.
pub const DEVICE: &str = "isthmus-vxlan";

/// Why there is no tunnel.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DeviceError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("interface {DEVICE} of the tunnel: {0}")]
    Kernel(#[from] rtnetlink::Error),
    #[error("interface {DEVICE} of the tunnel: {0}")]
    Setting(#[from] crate::cni::SysctlError),
    #[error("the interface {DEVICE} was made and is not there")]
    Gone,
    #[error("--tunnel vxlan-ipv6 needs --address6")]
    NoIpv6,
}

/// Makes the device, or takes over the one that an earlier agent made, and says its index. It has no programs yet, and is
/// down: see [`open`].
///
/// # Errors
/// What the kernel refused.
pub async fn ensure(host: &HostNet, mtu: u32, has_ipv6: bool) -> Result<u32, DeviceError> {
    if host.index(DEVICE).await?.is_none() {
        let message = LinkVxlan::new(DEVICE, 0)
            .port(PORT)
            .collect_metadata(true)
            .learning(false)
            .udp_csum(false)
            .build();
        host.handle().link().add(message).execute().await?;
    }
    let index = host.index(DEVICE).await?.ok_or(DeviceError::Gone)?;
    let set = LinkUnspec::new_with_index(index).address(MAC.to_vec()).arp(false).mtu(mtu).build();
    host.handle().link().set(set).execute().await?;
    prepare_tunnel(DEVICE, has_ipv6)?;
    Ok(index)
}

/// Sets it up, once its programs are there.
///
/// # Errors
/// What the kernel refused.
pub async fn open(host: &HostNet, index: u32) -> Result<(), DeviceError> {
    let up = LinkUnspec::new_with_index(index).up().build();
    Ok(host.handle().link().set(up).execute().await?)
}

/// Removes it; that there is none is fine.
///
/// # Errors
/// What the kernel refused.
pub async fn remove(host: &HostNet) -> Result<(), LinkError> {
    host.remove(DEVICE).await
}
