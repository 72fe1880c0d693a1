//! What a test run takes by itself: that of a program that does nothing.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// linux/bpf.h, `enum bpf_cmd`.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;
/// `r0 = -1; exit`: the next program on the interface has its say.
const NEXT: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// linux/bpf.h, `union bpf_attr`, "struct used by BPF_PROG_LOAD command", as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 6],
}

/// linux/bpf.h, `union bpf_attr`, "struct used by BPF_PROG_TEST_RUN command", as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    returned: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

/// A program that does nothing.
pub(super) struct Empty(OwnedFd);

impl Empty {
    pub(super) fn load() -> io::Result<Self> {
        let license = c"Apache-2.0";
        let mut load = Load {
            kind: CLASSIFIER,
            count: NEXT.len() as u32,
            instructions: NEXT.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..Load::default()
        };
        let program = bpf(BPF_PROG_LOAD, &mut load)?;
        // SAFETY: the call returned a new descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(program) }))
    }

    /// Nanoseconds of one of so many runs on a frame.
    pub(super) fn run(&self, frame: &[u8], times: u32) -> io::Result<f64> {
        let mut run = Run {
            program: self.0.as_raw_fd() as u32,
            size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            ..Run::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut run)?;
        Ok(f64::from(run.duration))
    }
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: attributes of this command, zero where they are not said, and what they point to lives as long.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn attributes_are_as_long_as_the_kernel_has_them() {
        assert_eq!((size_of::<super::Load>(), size_of::<super::Run>()), (72, 72));
    }
}
