//! Network namespaces of pods: entered by a thread of its own, and told apart by inode and cookie.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use thiserror::Error;

/// `SO_NETNS_COOKIE` of `<asm-generic/socket.h>`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why a namespace can't be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum NetnsError {
    #[error("network namespace {path}: {error}")]
    Open { path: String, error: io::Error },
    #[error("{path} is the network namespace of this node itself, not of a pod")]
    Own { path: String },
    #[error("{path} is no namespace")]
    NotOne { path: String },
    #[error("network namespace cannot be entered: {0}")]
    Enter(io::Error),
    #[error("the cookie of the network namespace cannot be read: {0}")]
    Cookie(io::Error),
}

/// Names a namespace for as long as it lives: inode numbers of nsfs are not reused before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// The namespace that this process began in.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        // Not `/proc/thread-self`: threads that entered a pod's namespace must not matter.
        netns_of_process(std::process::id())
    }

    #[cfg(test)]
    pub(crate) fn for_test(inode: u64) -> Self {
        Self { device: 4, inode }
    }
}

/// The namespace of a process.
///
/// # Errors
/// There is no such process any more.
pub fn netns_of_process(pid: u32) -> io::Result<NetnsId> {
    let metadata = std::fs::metadata(format!("/proc/{pid}/ns/net"))?;
    Ok(NetnsId { device: metadata.dev(), inode: metadata.ino() })
}

/// An open network namespace: it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// Opens a namespace by its path, and makes sure that it is another one than the agent's.
    ///
    /// # Errors
    /// Nothing is there, or it is no network namespace of a pod.
    pub fn open(path: &str) -> Result<Self, NetnsError> {
        let failed = |error| NetnsError::Open { path: path.to_owned(), error };
        // Whatever is there: nobody is waited for at the other end of a pipe, and no terminal becomes ours.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(Path::new(path)).map_err(failed)?;
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotOne { path: path.to_owned() });
        }
        let id = NetnsId::of(&file).map_err(failed)?;
        if id == NetnsId::own().map_err(failed)? {
            return Err(NetnsError::Own { path: path.to_owned() });
        }
        Ok(Self { file, id })
    }

    /// Opens that of a process, be it the agent's own.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net"))?;
        let id = NetnsId::of(&file)?;
        Ok(Self { file, id })
    }

    /// What tells it from others.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// For netlink messages that name it.
    pub fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Runs something inside, on a thread that ends with it: a thread that has left its namespace must not go back
    /// to a pool.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn run<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let file = self.file.try_clone().map_err(NetnsError::Enter)?;
        let thread = std::thread::Builder::new().name("pod-netns".to_owned()).spawn(move || {
            let fd: BorrowedFd<'_> = file.as_fd();
            setns(fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
            Ok(inside())
        });
        let thread = thread.map_err(NetnsError::Enter)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(NetnsError::Enter(io::Error::other("the thread in it panicked"))))
    }

    /// Its `SO_NETNS_COOKIE`: how the socket programs in the kernel know it.
    ///
    /// # Errors
    /// It can't be entered, or the kernel is older than 5.14.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(own_cookie)?.map_err(NetnsError::Cookie)
    }
}

/// The cookie of the calling thread's namespace.
pub(crate) fn own_cookie() -> io::Result<u64> {
    let socket =
        std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    cookie_of(&socket)
}

/// The cookie of the namespace that a socket was made in. One that was accepted is of its peer's namespace where it is a
/// unix socket (`unix_stream_connect` of the kernel makes it in the namespace of whoever connects).
pub(crate) fn cookie_of(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and `cookie` and `length` describe eight writable bytes, which is what the
    // option's value has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_of_a_pod_is_refused_at_once_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("file"), "x").unwrap();
        // Opening it for reading would wait for a writer.
        nix::unistd::mkfifo(at("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", at("own")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for path in [at("file"), at("pipe"), dir.path().to_str().unwrap().to_owned(), "/dev/zero".to_owned()]
        {
            assert!(matches!(Netns::open(&path), Err(NetnsError::NotOne { .. })), "{path}");
        }
        assert!(matches!(Netns::open(&at("own")), Err(NetnsError::Own { .. })));
        for path in [at("missing"), at("socket"), at("file/.."), String::new(), "a\0b".to_owned()] {
            assert!(matches!(Netns::open(&path), Err(NetnsError::Open { .. })), "{path:?}");
        }
        // A namespace, but of no network: it is not entered.
        let other = Netns::open("/proc/self/ns/uts").unwrap();
        assert!(other.cookie().is_err());
    }
}
