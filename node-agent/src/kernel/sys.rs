//! The BPF system calls that aya keeps to itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// linux/bpf.h, `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
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
