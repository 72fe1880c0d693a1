//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Every variant names what it was about.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "this agent was built without kernel programs (SKIP_EBPF=1): build it again with a BPF toolchain"
    )]
    NoPrograms,
    #[error(
        "the maps pinned in {} have format {found}, this agent needs {expected}: drain the node, unload, start again",
        dir.display()
    )]
    Format { dir: PathBuf, found: u32, expected: u32 },
    #[error("{}: not a directory of a cgroup v2 hierarchy", dir.display())]
    NotACgroup { dir: PathBuf },
    #[error("{}: is the root cgroup, so every process would be hooked: name another", dir.display())]
    RootCgroup { dir: PathBuf },
    #[error("{what} {}: {source}", path.display())]
    Path { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the kernel programs do not load (root, or CAP_BPF and CAP_NET_ADMIN, is needed): {source}")]
    Load { source: Box<EbpfError> },
    #[error("kernel program {name}: {source}")]
    Program { name: String, source: Box<ProgramError> },
    #[error("kernel map {name}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("the kernel object has no {what} {name}: it was built from other sources")]
    Missing { what: &'static str, name: &'static str },
    #[error("interface {ifname:?}: {source}")]
    Interface { ifname: String, source: io::Error },
    #[error("the flow events have been taken already")]
    EventsTaken,
    #[error("service {key}: {found} backend slots, at most {most} fit")]
    TooManyBackends { key: String, found: usize, most: u32 },
    #[error("all numbers of kernel {what} are in use")]
    Exhausted { what: &'static str },
}

impl KernelError {
    /// The map that has no room for what was to be written, if that is what is wrong.
    pub fn full(&self) -> Option<&'static str> {
        match self {
            Self::Map { name, source: MapError::SyscallError(error) } => {
                let number = error.io_error.raw_os_error();
                // Of hash maps, and of tries.
                [libc::E2BIG, libc::ENOSPC].map(Some).contains(&number).then_some(name)
            }
            Self::Exhausted { what } => Some(what),
            _ => None,
        }
    }

    pub(super) fn program(name: &str, source: ProgramError) -> Self {
        Self::Program { name: name.to_owned(), source: Box::new(source) }
    }

    pub(super) fn path(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Path { what, path: path.into(), source }
    }
}
