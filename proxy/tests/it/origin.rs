//! An origin that sends the bytes it is told to, and keeps those that it gets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What it does with a request.
#[derive(Clone)]
pub enum Does {
    /// Answers, and waits for the next.
    Answers(&'static str),
    /// Answers, and closes the connection.
    Closes(&'static str),
    /// Answers, and from then on says what it hears.
    Switches(&'static str),
    /// Says nothing.
    Silent,
}

/// Gone when dropped.
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

impl Origin {
    /// `does` is asked with the head of each request.
    pub async fn start(does: impl Fn(&str) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, does) = (Arc::new(Mutex::new(vec![])), Arc::new(does));
        let all = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, does.clone(), all.clone()));
            }
        });
        Self { address, seen, task }
    }

    /// One that is content with everything.
    pub async fn content() -> Self {
        Self::start(|_| Does::Answers(OK)).await
    }

    /// Everything that it was sent.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, does: Arc<impl Fn(&str) -> Does>, seen: Arc<Mutex<Vec<u8>>>) {
    let mut unread = vec![];
    let mut space = [0; 4096];
    loop {
        let Ok(length @ 1..) = stream.read(&mut space).await else { return };
        seen.lock().unwrap().extend_from_slice(&space[..length]);
        unread.extend_from_slice(&space[..length]);
        while let Some(end) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end + 4]).into_owned();
            unread.drain(..end + 4);
            // The end of a chunked body.
            if !head.contains(" HTTP/1.1\r\n") {
                continue;
            }
            match does(&head) {
                Does::Answers(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                Does::Closes(bytes) => {
                    let _ = stream.write_all(bytes.as_bytes()).await;
                    return;
                }
                Does::Switches(bytes) => {
                    stream.write_all(bytes.as_bytes()).await.unwrap();
                    stream.write_all(&unread).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
                Does::Silent => {}
            }
        }
    }
}
