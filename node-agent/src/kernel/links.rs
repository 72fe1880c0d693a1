//! Programs and the places they are attached to.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode,
};
use ebpf_shared::Direction;

use super::pins::{self, Cgroup, Pins};
use super::{KernelError, sys};

const FROM_POD: &str = "from_pod";
const TO_POD: &str = "to_pod";
const POD_ASKS: &str = "pod_asks";
const POD_ANSWERED: &str = "pod_answered";
const FROM_NET: &str = "from_net";
const TO_NET: &str = "to_net";
pub(super) const NET_XDP: &str = "net_xdp";
/// The node itself, wherever its packets come and go.
const HOST_IN: &str = "host_in";
const HOST_OUT: &str = "host_out";
const FROM_OVERLAY: &str = "from_overlay";
const TO_OVERLAY: &str = "to_overlay";

/// Where packets that only pass through this node are sent on before its stack has seen them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortCut {
    /// In the interface's driver, which has to support it (XDP).
    Driver,
    /// In front of the stack: any interface, and less gain.
    Generic,
    /// In the driver where it takes the program, in front of the stack else: each interface by itself.
    Best,
}

impl ShortCut {
    /// The ways in which it is tried, one after the other.
    fn ways(self) -> &'static [XdpMode] {
        match self {
            Self::Driver => &[XdpMode::Driver],
            Self::Generic => &[XdpMode::Skb],
            Self::Best => &[XdpMode::Driver, XdpMode::Skb],
        }
    }
}

/// As it is called in names of pins, and in status.
fn way_name(way: XdpMode) -> &'static str {
    if way == XdpMode::Driver { "driver" } else { "generic" }
}

/// A program and its place in the chain of an interface.
#[derive(Clone, Copy)]
struct Place {
    program: &'static str,
    hook: TcAttachType,
    /// Whether it comes before those that are there, or after.
    is_first: bool,
}

/// A pod's door. Attached in this order, so that what translates comes before the verdict on what the pod sends and after
/// the one on what it gets; what others attach sees only what policy lets pass.
const DOOR: [Place; 6] = [
    Place { program: FROM_POD, hook: TcAttachType::Ingress, is_first: true },
    Place { program: TO_POD, hook: TcAttachType::Egress, is_first: true },
    Place { program: POD_ASKS, hook: TcAttachType::Ingress, is_first: true },
    Place { program: POD_ANSWERED, hook: TcAttachType::Egress, is_first: false },
    HOSTS[0],
    HOSTS[1],
];
/// Policy for the node itself: what comes in was translated before, and what goes out is translated after.
const HOSTS: [Place; 2] = [
    Place { program: HOST_IN, hook: TcAttachType::Ingress, is_first: false },
    Place { program: HOST_OUT, hook: TcAttachType::Egress, is_first: true },
];
/// The node's own interfaces.
const NET: [Place; 4] = [
    Place { program: FROM_NET, hook: TcAttachType::Ingress, is_first: true },
    Place { program: TO_NET, hook: TcAttachType::Egress, is_first: false },
    HOSTS[0],
    HOSTS[1],
];
/// The tunnel's device where clients outside are served: behind what lets packets in, before what says where they go.
const NET_OF_TUNNEL: [Place; 2] = [
    Place { program: FROM_NET, hook: TcAttachType::Ingress, is_first: false },
    Place { program: TO_NET, hook: TcAttachType::Egress, is_first: true },
];
/// The tunnel's device.
const TUNNEL: [Place; 4] = [
    Place { program: FROM_OVERLAY, hook: TcAttachType::Ingress, is_first: true },
    Place { program: TO_OVERLAY, hook: TcAttachType::Egress, is_first: true },
    HOSTS[0],
    HOSTS[1],
];
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

/// The program that guards a direction of the node itself.
pub(super) fn host_door(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => HOST_OUT,
        Direction::Ingress => HOST_IN,
    }
}

pub(super) fn load_programs(programs: &mut Ebpf) -> Result<(), KernelError> {
    xdp(programs)?.load().map_err(|source| KernelError::program(NET_XDP, source))?;
    let places = DOOR.into_iter().chain(NET).chain(TUNNEL);
    for name in places.map(|place| place.program).collect::<BTreeSet<_>>() {
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
        if let Some((_, program)) = parse_link(&link) {
            replace(programs, pins, &link, program)?;
        } else if let Some(program) = parse_tunnel(&link) {
            replace(programs, pins, &link, program)?;
        } else if link.starts_with("xdp-") {
            replace(programs, pins, &link, NET_XDP)?;
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
    attach(programs, pins, ifname, &DOOR)
}

pub(super) fn attach_net(programs: &mut Ebpf, pins: &Pins, ifname: &str) -> Result<u32, KernelError> {
    attach(programs, pins, ifname, &NET)
}

/// As [`attach_net`], on the tunnel's device, which has its own programs by now.
pub(super) fn attach_net_of_tunnel(
    programs: &mut Ebpf,
    pins: &Pins,
    ifindex: u32,
) -> Result<(), KernelError> {
    let ifname = nix::net::if_::if_indextoname(ifindex)
        .map_err(|errno| KernelError::Interface { ifname: ifindex.to_string(), source: errno.into() })?;
    attach(programs, pins, &ifname.to_string_lossy(), &NET_OF_TUNNEL).map(drop)
}

/// The short cut at an interface; says by which way, and the name of its link.
pub(super) fn attach_short_cut(
    programs: &mut Ebpf,
    pins: &Pins,
    ifname: &str,
    cut: ShortCut,
) -> Result<(&'static str, String), KernelError> {
    let ifindex = index(ifname)?;
    let mut refused = None;
    for way in cut.ways() {
        let link = short_cut_name(ifindex, *way);
        match attach_way(programs, pins, ifname, *way, &link) {
            Ok(()) => {
                if let Some(error) = refused {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(ifname, error, "the driver does not take the short cut: it is generic");
                }
                return Ok((way_name(*way), link));
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or(KernelError::Missing { what: "way", name: NET_XDP }))
}

fn attach_way(
    programs: &mut Ebpf,
    pins: &Pins,
    ifname: &str,
    way: XdpMode,
    link: &str,
) -> Result<(), KernelError> {
    if replace(programs, pins, link, NET_XDP)? {
        return Ok(());
    }
    let error = |source| KernelError::program(NET_XDP, source);
    let program = xdp(programs)?;
    let id = program.attach(ifname, way).map_err(error)?;
    let owned = program.take_link(id).map_err(error)?;
    pin(owned.try_into().map_err(|_| unpinnable(NET_XDP))?, pins, link)
}

/// Takes it off all interfaces but these, and off these where another way goes before.
pub(super) fn detach_short_cuts_all_but(
    pins: &Pins,
    keep: &BTreeSet<u32>,
    cut: Option<ShortCut>,
) -> Result<(), KernelError> {
    let first = cut.and_then(|cut| cut.ways().first());
    let kept: BTreeSet<String> =
        first.iter().flat_map(|way| keep.iter().map(|ifindex| short_cut_name(*ifindex, **way))).collect();
    for link in pins.link_names()? {
        if link.starts_with("xdp-") && !kept.contains(&link) {
            pins::remove_link(&pins.link(&link))?;
        }
    }
    Ok(())
}

fn short_cut_name(ifindex: u32, way: XdpMode) -> String {
    format!("xdp-{ifindex}-{}", way_name(way))
}

fn attach(programs: &mut Ebpf, pins: &Pins, ifname: &str, places: &[Place]) -> Result<u32, KernelError> {
    let ifindex = index(ifname)?;
    for place in places {
        let link = link_name(ifindex, place.program);
        if replace(programs, pins, &link, place.program)? {
            continue;
        }
        if let Err(error) = attach_at(programs, pins, ifname, &link, *place) {
            // Half a guard is none that anybody should rely on.
            detach(pins, ifindex, places)?;
            return Err(error);
        }
    }
    Ok(ifindex)
}

pub(super) fn attach_tunnel(programs: &mut Ebpf, pins: &Pins, ifname: &str) -> Result<u32, KernelError> {
    let ifindex = index(ifname)?;
    for place in TUNNEL {
        let link = tunnel_link_name(ifindex, place.program);
        if !replace(programs, pins, &link, place.program)? {
            attach_at(programs, pins, ifname, &link, place)?;
        }
    }
    Ok(ifindex)
}

/// The index of an interface of the caller's network namespace.
pub(super) fn index(ifname: &str) -> Result<u32, KernelError> {
    nix::net::if_::if_nametoindex(ifname)
        .map_err(|errno| KernelError::Interface { ifname: ifname.to_owned(), source: errno.into() })
}

pub(super) fn detach_pod(pins: &Pins, ifindex: u32) -> Result<(), KernelError> {
    detach(pins, ifindex, &DOOR)
}

/// Takes the programs off all of the node's own interfaces but these.
pub(super) fn detach_net_all_but(pins: &Pins, keep: &BTreeSet<u32>) -> Result<(), KernelError> {
    for link in pins.link_names()? {
        match parse_link(&link) {
            // Its name is the same at pods' doors, so it goes with the one that is not.
            Some((ifindex, FROM_NET)) if !keep.contains(&ifindex) => detach(pins, ifindex, &NET)?,
            _ => {}
        }
    }
    Ok(())
}

fn detach(pins: &Pins, ifindex: u32, places: &[Place]) -> Result<(), KernelError> {
    for place in places {
        pins::remove_link(&pins.link(&link_name(ifindex, place.program)))?;
    }
    Ok(())
}

/// The links of a pod's door, with their programs.
pub(super) fn door_links(ifindex: u32) -> impl Iterator<Item = (String, &'static str)> {
    DOOR.into_iter().map(move |place| (link_name(ifindex, place.program), place.program))
}

/// Those of an interface of the node.
pub(super) fn net_links(ifindex: u32) -> impl Iterator<Item = (String, &'static str)> {
    NET.into_iter().map(move |place| (link_name(ifindex, place.program), place.program))
}

/// Those of the tunnel's device where clients outside are served.
pub(super) fn net_of_tunnel_links(ifindex: u32) -> impl Iterator<Item = (String, &'static str)> {
    NET_OF_TUNNEL.into_iter().map(move |place| (link_name(ifindex, place.program), place.program))
}

/// Those of the tunnel's device.
pub(super) fn tunnel_links(ifindex: u32) -> impl Iterator<Item = (String, &'static str)> {
    TUNNEL.into_iter().map(move |place| (tunnel_link_name(ifindex, place.program), place.program))
}

/// Those of a cgroup.
pub(super) fn socket_links(cgroup: &Cgroup) -> impl Iterator<Item = (String, &'static str)> {
    SOCKET_HOOKS.into_iter().map(|hook| (format!("cgroup-{}-{hook}", cgroup.inode), hook))
}

fn tunnel_link_name(ifindex: u32, program: &str) -> String {
    format!("tunnel-{ifindex}-{program}")
}

fn link_name(ifindex: u32, program: &str) -> String {
    format!("tc-{ifindex}-{program}")
}

pub(super) fn attached_pods(pins: &Pins) -> Result<BTreeSet<u32>, KernelError> {
    let links = pins.link_names()?;
    Ok(links
        .iter()
        .filter_map(|link| parse_link(link))
        .filter(|(_, program)| [FROM_POD, TO_POD].contains(program))
        .map(|(ifindex, _)| ifindex)
        .collect())
}

fn attach_at(
    programs: &mut Ebpf,
    pins: &Pins,
    ifname: &str,
    link: &str,
    place: Place,
) -> Result<(), KernelError> {
    let Place { program: name, hook, is_first } = place;
    let error = |source| KernelError::program(name, source);
    let program = classifier(programs, name)?;
    let order = if is_first { LinkOrder::first() } else { LinkOrder::last() };
    let id = program.attach_with_options(ifname, hook, TcAttachOptions::TcxOrder(order)).map_err(error)?;
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

/// The program of `tunnel-<ifindex>-<program>`.
fn parse_tunnel(link: &str) -> Option<&'static str> {
    let (_, program) = link.strip_prefix("tunnel-")?.split_once('-')?;
    TUNNEL.into_iter().map(|place| place.program).find(|name| *name == program)
}

/// `tc-<ifindex>-<program>`.
fn parse_link(link: &str) -> Option<(u32, &'static str)> {
    let (ifindex, program) = link.strip_prefix("tc-")?.split_once('-')?;
    let mut known = DOOR.iter().chain(&NET).map(|place| place.program);
    Some((ifindex.parse().ok()?, known.find(|name| *name == program)?))
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

fn xdp(programs: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    program(programs, NET_XDP)?.try_into().map_err(|source| KernelError::program(NET_XDP, source))
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
    fn only_names_of_links_are_taken_for_links() {
        assert_eq!(parse_link("tc-17-from_pod"), Some((17, FROM_POD)));
        assert_eq!(parse_link("tc-17-to_pod"), Some((17, TO_POD)));
        assert_eq!(parse_link("tc-2-from_net"), Some((2, FROM_NET)));
        for other in ["tc-17-other", "tc-x-to_pod", "cgroup-1-sock_bind4", "tc-17", ""] {
            assert_eq!(parse_link(other), None, "{other}");
        }
        assert_eq!(parse_tunnel("tunnel-3-to_overlay"), Some(TO_OVERLAY));
        assert_eq!((parse_tunnel("tc-3-to_overlay"), parse_link("tunnel-3-to_overlay")), (None, None));
    }
}
