//! `SocketOption` and `TcpKeepalive` of a listener: the options that are known here, by their numbers on Linux.

use std::{io, os::fd::AsFd};

use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use xds_proto::envoy::config::core::v3::{
    SocketOption as WireOption, TcpKeepalive,
    socket_option::{SocketState, Value},
};

use super::{
    error::Path,
    wire::{Result, refuse, u32_or},
};

/// What a listening socket is made with, beside the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SocketOptions {
    /// `IP_TRANSPARENT`: what is redirected here keeps the address that it was for.
    pub transparent: bool,
    /// `IP_FREEBIND`: the address may be nobody's yet.
    pub freebind: bool,
    /// Before it is bound.
    pub options: Vec<SocketOption>,
    /// None: the kernel sends no probes.
    pub keepalive: Option<Keepalive>,
}

/// One that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketOption {
    /// `SOL_SOCKET`, `SO_MARK`.
    Mark(u32),
    /// `SOL_SOCKET`, `SO_KEEPALIVE`.
    Keepalive(bool),
    /// `SOL_SOCKET`, `SO_RCVBUF`, in bytes.
    ReceiveBuffer(usize),
    /// `SOL_SOCKET`, `SO_SNDBUF`, in bytes.
    SendBuffer(usize),
    /// `IPPROTO_IP`, `IP_TRANSPARENT`.
    Transparent(bool),
    /// `IPPROTO_IP`, `IP_FREEBIND`.
    Freebind(bool),
    /// `IPPROTO_IPV6`, `IPV6_V6ONLY`.
    V6Only(bool),
    /// `IPPROTO_TCP`, `TCP_NODELAY`: always on here.
    NoDelay,
}

/// `TcpKeepalive`. Whole seconds, as the kernel has them; 0: its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Keepalive {
    pub probes: u32,
    pub idle_seconds: u32,
    pub interval_seconds: u32,
}

pub(super) fn convert(path: &Path<'_>, list: Vec<WireOption>) -> Result<SocketOptions> {
    let one = |(at, wire)| option(&path.index(at), wire);
    let options = list.into_iter().enumerate().map(one).collect::<Result<_>>()?;
    Ok(SocketOptions { options, ..SocketOptions::default() })
}

fn option(path: &Path<'_>, wire: WireOption) -> Result<SocketOption> {
    let WireOption { description: _, level, name, state, r#type, ip_version, value } = wire;
    refuse!(path; r#type, ip_version);
    if SocketState::try_from(state) != Ok(SocketState::StatePrebind) {
        return Err(path.field("state").invalid(state, "is not STATE_PREBIND"));
    }
    let value = match value {
        Some(Value::IntValue(value)) => value,
        Some(Value::BufValue(_)) => return Err(path.field("buf_value").unsupported()),
        None => return Err(path.field("int_value").missing()),
    };
    let wrong = || path.field("int_value").invalid(value, "is no value of this option");
    let flag = || match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(wrong()),
    };
    let size = || usize::try_from(value).ok().filter(|size| *size <= 1 << 30).ok_or_else(wrong);
    match (level, name) {
        // Envoy's field is signed as the kernel's is not: both ways to write the highest bit mean it.
        (1, 36) => {
            let mark = u32::try_from(value).ok().or_else(|| i32::try_from(value).ok().map(i32::cast_unsigned));
            mark.map(SocketOption::Mark).ok_or_else(wrong)
        }
        (1, 9) => flag().map(SocketOption::Keepalive),
        (1, 8) => size().map(SocketOption::ReceiveBuffer),
        (1, 7) => size().map(SocketOption::SendBuffer),
        (0, 19) => flag().map(SocketOption::Transparent),
        (0, 15) => flag().map(SocketOption::Freebind),
        (41, 26) => flag().map(SocketOption::V6Only),
        (6, 1) if value == 1 => Ok(SocketOption::NoDelay),
        _ => Err(path.invalid(
            format!("level {level}, name {name}"),
            "is none of SO_MARK, SO_KEEPALIVE, SO_RCVBUF, SO_SNDBUF, IP_TRANSPARENT, IP_FREEBIND, IPV6_V6ONLY, TCP_NODELAY",
        )),
    }
}

pub(super) fn keepalive(path: &Path<'_>, wire: Option<TcpKeepalive>) -> Result<Option<Keepalive>> {
    let Some(TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval }) = wire else {
        return Ok(None);
    };
    let most = |field: &'static str, value: u32, limit: u32| match value {
        value if value <= limit => Ok(value),
        value => Err(path.field(field).invalid(value, format!("is more than the kernel takes: {limit}"))),
    };
    Ok(Some(Keepalive {
        probes: most("keepalive_probes", u32_or(&keepalive_probes, 0), 127)?,
        idle_seconds: most("keepalive_time", u32_or(&keepalive_time, 0), 32_767)?,
        interval_seconds: most("keepalive_interval", u32_or(&keepalive_interval, 0), 32_767)?,
    }))
}

impl SocketOptions {
    /// Whether connections keep the address that they were for.
    pub fn is_transparent(&self) -> bool {
        self.transparent || self.options.contains(&SocketOption::Transparent(true))
    }

    /// Sets them on a socket that is not bound yet.
    ///
    /// # Errors
    /// The kernel's: some take `CAP_NET_ADMIN`.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let Self { transparent, freebind, options, keepalive } = self;
        if *transparent {
            // One flag for both families: it belongs to the socket, whichever level sets it.
            setsockopt(socket, sockopt::IpTransparent, &true)?;
        }
        if *freebind {
            setsockopt(socket, sockopt::IpFreebind, &true)?;
        }
        for option in options {
            match option {
                SocketOption::Mark(mark) => setsockopt(socket, sockopt::Mark, mark)?,
                SocketOption::Keepalive(on) => setsockopt(socket, sockopt::KeepAlive, on)?,
                SocketOption::ReceiveBuffer(size) => setsockopt(socket, sockopt::RcvBuf, size)?,
                SocketOption::SendBuffer(size) => setsockopt(socket, sockopt::SndBuf, size)?,
                SocketOption::Transparent(on) => setsockopt(socket, sockopt::IpTransparent, on)?,
                SocketOption::Freebind(on) => setsockopt(socket, sockopt::IpFreebind, on)?,
                SocketOption::V6Only(on) => setsockopt(socket, sockopt::Ipv6V6Only, on)?,
                SocketOption::NoDelay => {}
            }
        }
        // What is accepted takes these over.
        if let Some(Keepalive { probes, idle_seconds, interval_seconds }) = keepalive {
            setsockopt(socket, sockopt::KeepAlive, &true)?;
            if *probes > 0 {
                setsockopt(socket, sockopt::TcpKeepCount, probes)?;
            }
            if *idle_seconds > 0 {
                setsockopt(socket, sockopt::TcpKeepIdle, idle_seconds)?;
            }
            if *interval_seconds > 0 {
                setsockopt(socket, sockopt::TcpKeepInterval, interval_seconds)?;
            }
        }
        Ok(())
    }
}
