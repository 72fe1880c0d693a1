//! Tells the service manager how this process is (sd_notify(3)): a datagram to the socket that it names.

use std::{
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

/// Started, as far as the service manager is concerned.
const READY: &str = "READY=1";
/// It drains.
pub const STOPPING: &str = "STOPPING=1";
/// Longest line of status, so that a datagram stays small; it is for people.
const MAX_STATUS_BYTES: usize = 1024;

/// The service manager's socket, if there is one.
#[derive(Debug, Default)]
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// To the socket in `NOTIFY_SOCKET`, if it is set; else nobody is told.
    pub fn from_environment() -> Self {
        Self::to(std::env::var_os("NOTIFY_SOCKET"))
    }

    fn to(name: Option<OsString>) -> Self {
        let address = name.and_then(|name| match name.as_encoded_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name).ok(),
            None => SocketAddr::from_pathname(Path::new(&name)).ok(),
        });
        Self(address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address))))
    }

    /// Says something. Nobody waits for it, and nothing depends on it.
    pub fn say(&self, state: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&self, line: &str) {
        self.say(&status(line));
    }

    /// The start is over, with one line for `systemctl status`: in one datagram, so that nobody sees the one without the
    /// other. It may be said again.
    pub fn ready(&self, line: &str) {
        self.say(&format!("{}\n{READY}", status(line)));
    }
}

fn status(line: &str) -> String {
    let line = line.replace('\n', " ");
    format!("STATUS={}", &line[..line.floor_char_boundary(MAX_STATUS_BYTES)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_what_is_said_and_nobody_is_fine_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(Some(path.into()));
        notifier.ready("ready");
        notifier.status("no quorum:\n1 of 3");
        notifier.status(&"é".repeat(MAX_STATUS_BYTES));
        notifier.say(STOPPING);
        let long = format!("STATUS={}", "é".repeat(MAX_STATUS_BYTES / 2));
        let mut heard = [0; 2 * MAX_STATUS_BYTES];
        for expected in ["STATUS=ready\nREADY=1", "STATUS=no quorum: 1 of 3", &long, "STOPPING=1"] {
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(std::str::from_utf8(&heard[..length]).unwrap(), expected);
        }
        Notifier::default().ready("ready");
        Notifier::to(Some("/nowhere/at/all".into())).ready("ready");
    }

    #[test]
    fn an_abstract_socket_is_one_too() {
        let name = format!("isthmus-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(Some(format!("@{name}").into())).say(STOPPING);
        let mut heard = [0; 64];
        let length = manager.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"STOPPING=1");
    }
}
