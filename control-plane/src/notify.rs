//! Tells the service manager how this process is (sd_notify(3)): a datagram to the socket that it names.

use std::{
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

/// It serves.
pub const READY: &str = "READY=1";
/// It drains.
pub const STOPPING: &str = "STOPPING=1";

/// The service manager's socket, if there is one.
#[derive(Debug)]
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
        self.say(&format!("STATUS={}", line.replace('\n', " ")));
    }
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
        notifier.say(READY);
        notifier.status("no quorum:\n1 of 3");
        let mut heard = [0; 64];
        for expected in ["READY=1", "STATUS=no quorum: 1 of 3"] {
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(std::str::from_utf8(&heard[..length]).unwrap(), expected);
        }
        Notifier::to(None).say(READY);
        Notifier::to(Some("/nowhere/at/all".into())).say(READY);
    }
}
