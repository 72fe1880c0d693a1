//! Reading the first bytes of a connection, with a limit on time and size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    Hello, Wishes,
    http_hello::{Spoken, spoken},
    parse,
};
use crate::limits;

/// What was found; the bytes are to be put back in front.
#[derive(Debug)]
pub enum Inspected {
    /// TLS.
    Hello {
        /// Everything that was read.
        bytes: Bytes,
        /// What the client asks for.
        wishes: Wishes,
    },
    /// Something else.
    Raw {
        /// Everything that was read.
        bytes: Bytes,
        /// Which HTTP it is, if that was asked for and it is HTTP.
        protocol: Option<&'static str>,
    },
    /// Not enough to say, in all the time there was.
    Silent {
        /// Everything that was read.
        bytes: Bytes,
    },
    /// The client is gone.
    Closed,
}

/// Reads until it is known what the client speaks: whether it is TLS, and if it is not and `http` is set, which HTTP.
/// `bytes` were read before.
pub async fn inspect(stream: &mut TcpStream, mut bytes: BytesMut, limit: Duration, http: bool) -> Inspected {
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    loop {
        match parse(&bytes) {
            Hello::Client(wishes) => return Inspected::Hello { bytes: bytes.freeze(), wishes },
            Hello::NotTls => match if http { spoken(&bytes) } else { Spoken::Other } {
                Spoken::Http(protocol) => {
                    return Inspected::Raw { bytes: bytes.freeze(), protocol: Some(protocol) };
                }
                Spoken::Incomplete if bytes.len() < limits::CLIENT_HELLO_BYTES => {}
                Spoken::Incomplete | Spoken::Other => {
                    return Inspected::Raw { bytes: bytes.freeze(), protocol: None };
                }
            },
            // As in Envoy, a hello that does not fit is no TLS that could be routed.
            Hello::Incomplete if bytes.len() >= limits::CLIENT_HELLO_BYTES => {
                return Inspected::Raw { bytes: bytes.freeze(), protocol: None };
            }
            Hello::Incomplete => {}
        }
        bytes.reserve(2048);
        tokio::select! {
            read = stream.read_buf(&mut bytes) => match read {
                Ok(0) | Err(_) => return Inspected::Closed,
                Ok(_) => {}
            },
            () = deadline.as_mut() => return Inspected::Silent { bytes: bytes.freeze() },
        }
    }
}
