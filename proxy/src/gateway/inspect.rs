//! Reading the first bytes of a connection, with a limit on time and size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{Hello, parse};
use crate::limits;

/// What was found; the bytes are to be put back in front.
#[derive(Debug)]
pub enum Inspected {
    /// TLS.
    Hello {
        /// Everything that was read.
        bytes: Bytes,
        /// SNI, in lower case.
        server_name: Option<String>,
    },
    /// Something else.
    Raw {
        /// Everything that was read.
        bytes: Bytes,
    },
    /// Not enough to say, in all the time there was.
    Silent {
        /// Everything that was read.
        bytes: Bytes,
    },
    /// The client is gone.
    Closed,
}

/// Reads until it is known what the client speaks.
pub async fn inspect(stream: &mut TcpStream, limit: Duration) -> Inspected {
    let mut bytes = BytesMut::with_capacity(2048);
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            read = stream.read_buf(&mut bytes) => match read {
                Ok(0) | Err(_) => return Inspected::Closed,
                Ok(_) => {}
            },
            () = deadline.as_mut() => return Inspected::Silent { bytes: bytes.freeze() },
        }
        match parse(&bytes) {
            Hello::Client(server_name) => return Inspected::Hello { bytes: bytes.freeze(), server_name },
            Hello::NotTls => return Inspected::Raw { bytes: bytes.freeze() },
            // As in Envoy, a hello that does not fit is no TLS that could be routed.
            Hello::Incomplete if bytes.len() >= limits::CLIENT_HELLO_BYTES => {
                return Inspected::Raw { bytes: bytes.freeze() };
            }
            Hello::Incomplete => {}
        }
    }
}
