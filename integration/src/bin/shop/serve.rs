//! The server.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};

#[derive(clap::Args)]
pub(crate) struct Serve {
    #[arg(long)]
    name: String,
    #[arg(long, default_value = "v1")]
    version: String,
    #[arg(long, default_value = "")]
    cluster: String,
    /// Once or several times.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: Vec<SocketAddr>,
    /// Made once the port is bound.
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

/// Datagrams go back to where they came from, with a name behind what they said.
async fn echo(socket: UdpSocket, name: String) {
    let mut buffer = [0; 2_048];
    loop {
        // An error is one that an earlier answer has met: its client is gone.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [&buffer[..length], name.as_bytes()].concat();
        let _ = socket.send_to(&answer, from).await;
    }
}

impl Serve {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut listeners = Vec::new();
        for address in &self.listen {
            listeners.push(TcpListener::bind(address).await?);
            tokio::spawn(echo(UdpSocket::bind(address).await?, self.name.clone()));
        }
        if let Some(file) = &self.ready_file {
            std::fs::write(file, b"")?;
        }
        let serve = Arc::new(self);
        let doors = listeners.into_iter().map(|listener| tokio::spawn(Arc::clone(&serve).door(listener)));
        for door in doors.collect::<Vec<_>>() {
            door.await?;
        }
        Ok(())
    }

    async fn door(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let serve = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = serve.answer(&request, peer);
                    async move { Ok::<_, Infallible>(answer) }
                });
                // A client that goes away mid-request ends its own connection only.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let headers: BTreeMap<&str, String> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let body = json!({
            "name": self.name,
            "version": self.version,
            "cluster": self.cluster,
            "peer": peer.to_string(),
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "headers": headers,
        });
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }
}
