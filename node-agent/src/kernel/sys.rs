//! The BPF system calls that aya keeps to itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// linux/bpf.h, `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// linux/bpf.h, `union bpf_attr`, "anonymous struct used by BPF_OBJ_*".
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
    path_fd: i32,
    padding: u32,
}

/// linux/bpf.h, `union bpf_attr`, "struct used by BPF_LINK_UPDATE command".
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// linux/bpf.h, "flags for accessing BPF object from syscall side".
const BPF_F_RDONLY: u32 = 1 << 3;

/// Opens a pinned object.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    open(path, 0)
}

/// Opens a pinned map for looking only.
pub(super) fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    open(path, BPF_F_RDONLY)
}

fn open(path: &Path, file_flags: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, file_flags, ..ObjGet::default() };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the call returned a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// linux/bpf.h, `union bpf_attr`, "anonymous struct used by BPF_OBJ_GET_INFO_BY_FD".
#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of linux/bpf.h, `struct bpf_link_info`.
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct LinkInfo {
    kind: u32,
    id: u32,
    /// Number of the program behind it.
    pub(super) program: u32,
    padding: u32,
    /// What it is attached to: of a cgroup 8 bytes, of an interface the first 4.
    place: [u32; 2],
}

impl LinkInfo {
    /// linux/bpf.h, `BPF_LINK_TYPE_CGROUP`.
    const CGROUP: u32 = 3;

    /// Whether what it was attached to is there, and it was not detached.
    pub(super) fn is_attached(&self) -> bool {
        let [low, high] = self.place;
        if self.kind == Self::CGROUP { low | high != 0 } else { low != 0 }
    }
}

/// What the kernel says of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let attr = InfoByFd {
        bpf_fd: link.as_raw_fd() as u32,
        // The kernel tells no more than there is room for.
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}

/// Replaces the program behind a link: each packet or call meets the old one or the new one.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Detaches a link from its place at once; removing its pin alone does so at some later time.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // The attribute is the link's descriptor alone.
    bpf(BPF_LINK_DETACH, &(link.as_raw_fd() as u32)).map(drop)
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a repr(C) head of `union bpf_attr` without implicit padding, readable for its size;
    // the kernel takes missing fields for 0.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
