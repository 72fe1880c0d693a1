//! HTTP/2 by hand: frames as bytes, headers as HPACK literals.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame from the proxy.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Error code of `RST_STREAM` and `GOAWAY`.
    pub fn code(&self) -> u32 {
        let from = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[from..from + 4].try_into().unwrap())
    }
}

/// A client's connection.
pub struct H2 {
    stream: TcpStream,
    unread: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Literals that are never indexed (RFC 7541 6.2.3).
pub fn hpack(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in headers {
        block.push(0x10);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                block.push(length as u8);
            } else {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An ordinary request.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "pay.shop"), (":path", "/")];

impl H2 {
    pub async fn connect(at: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        stream.write_all(&hello).await.unwrap();
        Self { stream, unread: vec![] }
    }

    /// Whether the proxy took them: it may have closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn headers(&mut self, stream: u32, flags: u8, headers: &[(&str, &str)]) -> bool {
        self.send(&frame(HEADERS, flags | END_HEADERS, stream, &hpack(headers))).await
    }

    /// The next frame, or `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(length) = self.unread.get(..3) {
                let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
                if self.unread.len() >= 9 + length {
                    let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
                    return Some(Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
                        payload: bytes[9..].to_vec(),
                    });
                }
            }
            let mut space = [0; 4096];
            match self.stream.read(&mut space).await {
                Ok(length @ 1..) => self.unread.extend_from_slice(&space[..length]),
                _ => return None,
            }
        }
    }

    /// The next frame of this kind, or `None` at the end of the connection.
    pub async fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// What becomes of a request: `Ok(true)` for 200, `Ok(false)` for another answer, or the error code of its stream or of
    /// the connection; `None` if that is closed without a word.
    pub async fn outcome(&mut self, stream: u32) -> Option<Result<bool, u32>> {
        loop {
            let frame = self.next().await?;
            match frame.kind {
                // Index 8 of the static table is `:status: 200`.
                HEADERS if frame.stream == stream => return Some(Ok(frame.payload.first() == Some(&0x88))),
                RST_STREAM if frame.stream == stream => return Some(Err(frame.code())),
                GOAWAY if frame.code() != 0 => return Some(Err(frame.code())),
                _ => {}
            }
        }
    }
}
