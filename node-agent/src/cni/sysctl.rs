//! Kernel settings of the network namespace that the calling thread is in (`/proc/sys/net` shows that one).

use std::{fs, io};

use thiserror::Error;

/// A setting that can't be made.
#[derive(Debug, Error)]
#[error("sysctl {name} cannot be set to {value}: {error}")]
pub struct SysctlError {
    name: String,
    value: &'static str,
    error: io::Error,
}

/// The node forwards between its pods and its underlay. No packet is given to a socket before it is routed (IPv6 has the same
/// settings): one to a pod for which a proxy of the node waits in the pod's name ([`ebpf_shared::redirect`]) would be
/// dropped on its way to the pod's door, because what is forwarded may have no socket.
///
/// # Errors
/// Not allowed to.
pub fn prepare_host() -> Result<(), SysctlError> {
    set("ipv4/tcp_early_demux", "0")?;
    set("ipv4/udp_early_demux", "0")?;
    set("ipv4/ip_forward", "1")
}

/// The same for IPv6. A host that forwards takes no default route from router advertisements any more, unless it is
/// told to (`accept_ra=2`).
///
/// # Errors
/// Not allowed to.
pub fn prepare_host6() -> Result<(), SysctlError> {
    set("ipv6/conf/all/forwarding", "1")
}

/// Before the host's end of a link goes up. Reverse-path filtering is loose, because service answers may come
/// by another way; and IPv6, where pods don't have it, would only make noise on it. What a pod says of routers is
/// never believed.
pub(crate) fn prepare_link(name: &str, has_ipv6: bool) -> Result<(), SysctlError> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
    if !has_ipv6 {
        return set_if_present(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
    }
    for (setting, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")] {
        set(&format!("ipv6/conf/{name}/{setting}"), value)?;
    }
    Ok(())
}

/// Before the tunnel's device goes up: it has no address of its own, and answers may come by it to what went another way.
pub(crate) fn prepare_tunnel(name: &str, has_ipv6: bool) -> Result<(), SysctlError> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
    if !has_ipv6 {
        return set_if_present(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
    }
    // No link-local address either.
    for (setting, value) in
        [("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1"), ("disable_ipv6", "0")]
    {
        set(&format!("ipv6/conf/{name}/{setting}"), value)?;
    }
    Ok(())
}

/// Inside a pod's namespace, before it has a link: duplicate address detection would keep IPv6 addresses
/// unusable for the first second. Runtimes like to switch IPv6 off.
pub(crate) fn prepare_pod(has_ipv6: bool) -> Result<(), SysctlError> {
    if has_ipv6 {
        for which in ["all", "default"] {
            set(&format!("ipv6/conf/{which}/disable_ipv6"), "0")?;
            set(&format!("ipv6/conf/{which}/accept_ra"), "0")?;
        }
    }
    set_if_present("ipv6/conf/all/accept_dad", "0")?;
    set_if_present("ipv6/conf/default/accept_dad", "0")
}

fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = format!("/proc/sys/net/{name}");
    // Also where writing is not allowed it may be set already.
    if fs::read_to_string(&path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| SysctlError { name: name.replace('/', "."), value, error })
}

fn set_if_present(name: &str, value: &'static str) -> Result<(), SysctlError> {
    match set(name, value) {
        Err(error) if error.error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
