//! What the kernel says of the process at the other end of a unix socket.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::Arc,
};

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};

use crate::cni::{NetnsId, netns_of_process};

/// A process, while it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) netns: NetnsId,
    /// Path within the cgroup 2 hierarchy; `None`: it has none that this process sees.
    pub(super) cgroup: Option<Arc<str>>,
}

impl Process {
    /// Looks at the process that connected. `None` if it has ended: whoever has its socket now is not known, and its
    /// number may be another process's by now.
    pub(super) fn at(peer: &(impl AsFd + AsRawFd)) -> Option<Self> {
        // Holds on to the process itself, not to its number.
        let pidfd = getsockopt(peer, PeerPidfd).ok()?;
        let number = || number_of(pidfd.as_raw_fd());
        let before = number()?;
        let netns = netns_of_process(before).ok()?;
        let cgroup = fs::read_to_string(format!("/proc/{before}/cgroup")).ok();
        let cgroup = cgroup.as_deref().and_then(unified).map(Arc::from);
        // It still has the number, so it was that process which was looked at.
        (number() == Some(before)).then_some(Self { netns, cgroup })
    }
}

/// The number of a process as this one sees it, as long as it lives (`Pid:` of proc(5), "/proc/pid/fdinfo").
fn number_of(pidfd: i32) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}")).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim();
    // -1: it has ended; 0: it is of another process namespace.
    number.parse().ok().filter(|number| *number > 0)
}

/// The path in the unified hierarchy (cgroups(7), "/proc/pid/cgroup").
fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| !path.contains("/.."))
}

/// Whether a cgroup is another one or below it.
pub(super) fn is_below(cgroup: &str, other: &str) -> bool {
    cgroup
        .strip_prefix(other.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How processes name the cgroup of a directory.
///
/// # Errors
/// No such directory, or it is of no cgroup 2 hierarchy.
pub fn cgroup_path(dir: &Path) -> io::Result<String> {
    let dir = fs::canonicalize(dir)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let outside = || io::Error::other(format!("{} is in no mounted cgroup 2 hierarchy", dir.display()));
    in_hierarchy(&mounts, &dir).ok_or_else(outside)
}

/// From the text of `/proc/self/mountinfo` (proc(5)). PURE.
fn in_hierarchy(mounts: &str, dir: &Path) -> Option<String> {
    let of_line = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = dir.strip_prefix(point).ok()?.to_str()?;
        let path = [root.trim_end_matches('/'), below].join("/");
        Some((point.len(), path.trim_end_matches('/').to_owned()))
    };
    // What is mounted deeper is in the way of what is around it.
    mounts.lines().filter_map(of_line).max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_its_directory() {
        let mounts = "\
30 20 0:25 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
32 30 0:26 /pods /run/pods rw - cgroup2 cgroup2 rw
";
        let path = |dir: &str| in_hierarchy(mounts, Path::new(dir));
        assert_eq!(path("/sys/fs/cgroup/unified/gateway.service").unwrap(), "/gateway.service");
        assert_eq!(path("/run/pods/a/b").unwrap(), "/pods/a/b");
        assert_eq!(path("/sys/fs/cgroup/other"), None);
    }

    #[test]
    fn below_is_a_matter_of_whole_names() {
        assert!(is_below("/gw", "/gw") && is_below("/gw/worker", "/gw") && is_below("/gw", "/"));
        assert!(!is_below("/gwx", "/gw") && !is_below("/", "/gw") && !is_below("/gw (deleted)", "/gw"));
    }

    #[test]
    fn only_the_unified_hierarchy_counts_and_nothing_outside_of_what_is_seen() {
        assert_eq!(unified("4:memory:/x\n0::/pods/a\n"), Some("/pods/a"));
        assert_eq!(unified("0::/../other\n"), None);
        assert_eq!(unified("4:memory:/x\n"), None);
    }
}
