//! `NETLINK_SOCK_DIAG`: the sockets of a network namespace, listed and ended (linux/inet_diag.h, linux/sock_diag.h; needs
//! CONFIG_INET_DIAG_DESTROY).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use ebpf_shared::packet::protocol;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Sockets;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Bytes of `nlmsghdr`, `inet_diag_sockid`, and what comes before it in `inet_diag_req_v2` and `inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const BEFORE_ID: usize = 8;
const BEFORE_ID_IN_ANSWER: usize = 4;

/// net/tcp_states.h, as bits: those in which a socket has another side.
const TCP_STATES: u32 = !(1 << 6 | 1 << 7 | 1 << 10);
const ESTABLISHED: u32 = 1 << 1;

/// A dump of many sockets comes in many messages; each is read within this time.
const PATIENCE: i64 = 5;

/// `inet_diag_sockid`, as the kernel wrote it.
type Id = [u8; ID];

/// Ends those of the sockets of this thread's namespace that are connected to what they were noted for; returns how many.
pub fn destroy(sockets: &Sockets) -> io::Result<usize> {
    let mut done = 0;
    let protocols: BTreeSet<u8> = sockets.iter().map(|(_, protocol, _)| *protocol).collect();
    for protocol in protocols {
        if protocol != protocol::TCP && protocol != protocol::UDP {
            continue;
        }
        // A socket of IPv6 may talk to IPv4.
        for family in [libc::AF_INET, libc::AF_INET6] {
            for id in list(family as u8, protocol)? {
                // What is connected to something else by now is another connection.
                if sockets.contains(&(cookie(&id), protocol, remote(&id, family))) {
                    done += usize::from(end(family as u8, protocol, &id)?);
                }
            }
        }
    }
    Ok(done)
}

fn list(family: u8, protocol: u8) -> io::Result<Vec<Id>> {
    let states = if protocol == protocol::TCP { TCP_STATES } else { ESTABLISHED };
    let netlink = open()?;
    ask(&netlink, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, states, &[0; ID])?;
    let mut ids = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(ids),
                NLMSG_ERROR => return Err(refusal(body)),
                SOCK_DIAG_BY_FAMILY => {
                    let id = body.get(BEFORE_ID_IN_ANSWER..).and_then(|rest| rest.first_chunk());
                    ids.extend(id.copied());
                }
                _ => {}
            }
        }
    }
}

/// False if it is gone by itself.
fn end(family: u8, protocol: u8, id: &Id) -> io::Result<bool> {
    let netlink = open()?;
    ask(&netlink, SOCK_DESTROY, NLM_F_ACK, family, protocol, u32::MAX, id)?;
    let mut buffer = [0; 4_096];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    for (kind, body) in messages(&buffer[..length]) {
        if kind != NLMSG_ERROR {
            continue;
        }
        let refused = refusal(body);
        return match refused.raw_os_error() {
            Some(0) => Ok(true),
            Some(libc::ENOENT | libc::ESTALE) => Ok(false),
            _ => Err(refused),
        };
    }
    Ok(false)
}

fn open() -> io::Result<OwnedFd> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    Ok(netlink)
}

fn ask(
    netlink: &OwnedFd,
    kind: u16,
    flags: u16,
    family: u8,
    protocol: u8,
    states: u32,
    id: &Id,
) -> io::Result<()> {
    let length = HEADER + BEFORE_ID + ID;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question for each socket.
    message.extend([0; 8]);
    message.extend([family, protocol, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// Kind and body of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([message[4], message[5]]), &message[HEADER..]))
    })
}

/// `nlmsgerr`: a negative errno; 0 acknowledges.
fn refusal(body: &[u8]) -> io::Error {
    let number = body.first_chunk().map_or(libc::EINVAL, |bytes| -i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(number)
}

/// The other side.
fn remote(id: &Id, family: i32) -> SocketAddr {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let address: IpAddr = if family == libc::AF_INET {
        Ipv4Addr::new(id[20], id[21], id[22], id[23]).into()
    } else {
        let mut octets = [0; 16];
        octets.copy_from_slice(&id[20..36]);
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    };
    SocketAddr::new(address, port)
}

/// `SO_COOKIE`, in two halves.
fn cookie(id: &Id) -> u64 {
    let word = |at: usize| u64::from(u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]));
    word(40) | word(44) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_and_what_is_cut_off_is_left() {
        let mut bytes = Vec::new();
        for (kind, body) in [(20_u16, vec![1; 5]), (3, vec![])] {
            bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(&body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let kinds = |bytes: &[u8]| messages(bytes).map(|(kind, body)| (kind, body.len())).collect::<Vec<_>>();
        assert_eq!(kinds(&bytes), [(20, 5), (3, 0)]);
        assert_eq!(kinds(&bytes[..30]), [(20, 5)]);
        assert_eq!(kinds(&bytes[..3]), []);
        assert_eq!(kinds(&[0; 16]), []);
    }

    #[test]
    fn an_id_says_whom_a_socket_talks_to() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&8080_u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 1, 0, 2]);
        assert_eq!(remote(&id, libc::AF_INET), "10.1.0.2:8080".parse().unwrap());
        let mapped = Ipv4Addr::new(10, 1, 0, 2).to_ipv6_mapped();
        id[20..36].copy_from_slice(&mapped.octets());
        assert_eq!(remote(&id, libc::AF_INET6), "10.1.0.2:8080".parse().unwrap());
        id[40] = 7;
        id[44] = 1;
        assert_eq!(cookie(&id), 7 | 1 << 32);
    }
}
