//! Unix sockets: who calls is known by the kernel's word.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::net::{UnixListener, UnixStream, unix::UCred};
use tonic::transport::server::UdsConnectInfo;

use crate::Error;

/// Listens on a path with these permissions (0o600: only the own user; 0o666 where peers are told apart by
/// their credentials). A socket that nobody serves any more is replaced; one that is served, and any other
/// kind of file, is left alone.
///
/// # Errors
/// The path is taken, or may not be written.
pub fn bind_unix(path: impl AsRef<Path>, mode: u32) -> Result<UnixListener, Error> {
    let path = path.as_ref();
    let failed = |reason: String| Error::Listen { address: path.display().to_string(), reason };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            // Non-blocking sockets answer at once either way.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(failed("another process serves this socket".to_owned()));
            }
            fs::remove_file(path).map_err(|e| failed(e.to_string()))?;
        }
        Ok(_) => return Err(failed("a file that is no socket is in the way".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    let listener = UnixListener::bind(path).map_err(|e| failed(e.to_string()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| failed(e.to_string()))?;
    Ok(listener)
}

/// Connections for tonic's `serve_with_incoming`; requests carry [`UdsConnectInfo`], see [`unix_peer`].
pub fn incoming_unix(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static {
    Incoming(listener)
}

struct Incoming(UnixListener);

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

/// User, group and process of whoever sent a request over [`incoming_unix`] (`SO_PEERCRED`: as of connect).
pub fn unix_peer<T>(request: &tonic::Request<T>) -> Option<UCred> {
    request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let first = bind_unix(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind_unix(&path, 0o600).unwrap_err().to_string().contains("another process"));
        drop(first);
        bind_unix(&path, 0o666).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "keep me").unwrap();
        assert!(bind_unix(&path, 0o600).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "keep me");
    }
}
