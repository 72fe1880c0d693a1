//! Programs and the places they are attached to.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, SchedClassifier, TcAttachType};
use ebpf_shared::Direction;

use super::pins::{self, Cgroup, Pins};
use super::{KernelError, sys};

const FROM_POD: &str = "from_pod";
const TO_POD: &str = "to_pod";
const SOCKET_HOOKS: [&str; 10] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeer4",
    "sock_getpeer6",
    "sock_bind4",
    "sock_bind6",
];

/// The program that guards a direction.
pub(super) fn door(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => FROM_POD,
        Direction::Ingress => TO_POD,
    }
}

pub(super) fn load_programs(programs: &mut Ebpf) -> Result<(), KernelError> {
    for name in [FROM_POD, TO_POD] {
        classifier(programs, name)?.load().map_err(|source| KernelError::program(name, source))?;
    }
    for name in SOCKET_HOOKS {
        socket_hook(programs, name)?.load().map_err(|source| KernelError::program(name, source))?;
    }
    Ok(())
}

/// Puts this agent's programs behind the doors that an earlier one has left.
pub(super) fn take_over(programs: &Ebpf, pins: &Pins) -> Result<(), KernelError> {
    for link in pins.link_names()? {
        if let Some((_, program)) = parse_door(&link) {
            replace(programs, pins, &link, program)?;
        }
    }
    Ok(())
}

/// Hooks the sockets of a cgroup, and lets go of the cgroup that an earlier agent had, if it was another.
pub(super) fn hook_sockets(programs: &mut Ebpf, pins: &Pins, cgroup: &Cgroup) -> Result<(), KernelError> {
    let wanted = format!("cgroup-{}-", cgroup.inode);
    for name in SOCKET_HOOKS {
        let link = format!("{wanted}{name}");
        if replace(programs, pins, &link, name)? {
            continue;
        }
        let error = |source| KernelError::program(name, source);
        let program = socket_hook(programs, name)?;
        // "Single" is aya's word for no flags; a link always allows others on the same cgroup and below it.
        let id = program.attach(&*cgroup.file, CgroupAttachMode::Single).map_err(error)?;
        let owned = program.take_link(id).map_err(error)?;
        pin(owned.try_into().map_err(|_| unpinnable(name))?, pins, &link)?;
    }
    for link in pins.link_names()? {
        if link.starts_with("cgroup-") && !link.starts_with(&wanted) {
            pins::remove_link(&pins.link(&link))?;
        }
    }
    Ok(())
}

pub(super) fn attach_pod(programs: &mut Ebpf, pins: &Pins, ifname: &str) -> Result<u32, KernelError> {
    let ifindex = nix::net::if_::if_nametoindex(ifname)
        .map_err(|errno| KernelError::Interface { ifname: ifname.to_owned(), source: errno.into() })?;
    for (name, place) in [(FROM_POD, TcAttachType::Ingress), (TO_POD, TcAttachType::Egress)] {
        let link = format!("tc-{ifindex}-{name}");
        if replace(programs, pins, &link, name)? {
            continue;
        }
        if let Err(error) = attach_door(programs, pins, ifname, &link, name, place) {
            // Half a guard is none that anybody should rely on.
            detach_pod(pins, ifindex)?;
            return Err(error);
        }
    }
    Ok(ifindex)
}

pub(super) fn detach_pod(pins: &Pins, ifindex: u32) -> Result<(), KernelError> {
    for name in [FROM_POD, TO_POD] {
        pins::remove_link(&pins.link(&format!("tc-{ifindex}-{name}")))?;
    }
    Ok(())
}

pub(super) fn attached_pods(pins: &Pins) -> Result<BTreeSet<u32>, KernelError> {
    let links = pins.link_names()?;
    Ok(links.iter().filter_map(|link| parse_door(link)).map(|(ifindex, _)| ifindex).collect())
}

fn attach_door(
    programs: &mut Ebpf,
    pins: &Pins,
    ifname: &str,
    link: &str,
    name: &'static str,
    place: TcAttachType,
) -> Result<(), KernelError> {
    let error = |source| KernelError::program(name, source);
    let program = classifier(programs, name)?;
    // First: what others attach sees only what policy lets pass.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(ifname, place, order).map_err(error)?;
    let owned = program.take_link(id).map_err(error)?;
    pin(owned.try_into().map_err(|_| unpinnable(name))?, pins, link)
}

fn pin(link: FdLink, pins: &Pins, name: &str) -> Result<(), KernelError> {
    let path = pins.link(name);
    // What the handle refers to stays attached by the pin.
    link.pin(&path).map(drop).map_err(|source| KernelError::path("pin", path, io::Error::other(source)))
}

/// Replaces the program behind a pinned link. False if there is no such link, or what it was attached to is
/// gone: then the pin is removed.
fn replace(programs: &Ebpf, pins: &Pins, link: &str, program: &'static str) -> Result<bool, KernelError> {
    let path = pins.link(link);
    let pinned = match sys::open_pinned(&path) {
        Ok(pinned) => pinned,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(KernelError::path("pinned link", path, source)),
    };
    let fd = programs
        .program(program)
        .ok_or(KernelError::Missing { what: "program", name: program })?
        .fd()
        .map_err(|source| KernelError::program(program, source))?;
    match sys::update_link(pinned.as_fd(), fd.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => pins::remove_link(&path).map(|()| false),
        Err(source) => Err(KernelError::path("replacing the program behind", path, source)),
    }
}

/// `tc-<ifindex>-<program>`.
fn parse_door(link: &str) -> Option<(u32, &'static str)> {
    let (ifindex, program) = link.strip_prefix("tc-")?.split_once('-')?;
    let program = [FROM_POD, TO_POD].into_iter().find(|name| *name == program)?;
    Some((ifindex.parse().ok()?, program))
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    programs.program_mut(name).ok_or(KernelError::Missing { what: "program", name })
}

fn classifier<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    program(programs, name)?.try_into().map_err(|source| KernelError::program(name, source))
}

fn socket_hook<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, KernelError> {
    program(programs, name)?.try_into().map_err(|source| KernelError::program(name, source))
}

fn unpinnable(name: &'static str) -> KernelError {
    let source = io::Error::other("this kernel has no links for it; Linux 6.6 or later is needed");
    KernelError::path("kernel program", name, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_doors_are_taken_for_doors() {
        assert_eq!(parse_door("tc-17-from_pod"), Some((17, FROM_POD)));
        assert_eq!(parse_door("tc-17-to_pod"), Some((17, TO_POD)));
        for other in ["tc-17-other", "tc-x-to_pod", "cgroup-1-sock_bind4", "tc-17", ""] {
            assert_eq!(parse_door(other), None, "{other}");
        }
    }
}
