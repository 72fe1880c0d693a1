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

/// The node forwards between its pods and its underlay.
///
/// # Errors
/// Not allowed to.
pub fn prepare_host() -> Result<(), SysctlError> {
    set("ipv4/ip_forward", "1")
}

/// Before the host's end of a link goes up. Reverse-path filtering is loose, because service answers may come
/// by another way; and IPv6, which pods don't have yet, would only make noise on it.
pub(crate) fn prepare_link(name: &str) -> Result<(), SysctlError> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
    set_if_present(&format!("ipv6/conf/{name}/disable_ipv6"), "1")
}

/// Inside a pod's namespace, before it has a link: duplicate address detection would keep IPv6 addresses
/// unusable for the first second.
pub(crate) fn prepare_pod() -> Result<(), SysctlError> {
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
