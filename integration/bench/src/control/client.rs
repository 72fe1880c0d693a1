//! One synced write of 256 bytes, to either store.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::json;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use xds_proto::isthmus::admin::v1::{ApplyRequest, StatusRequest, admin_client::AdminClient};

/// Bytes of a written value, all told.
pub const VALUE_BYTES: usize = 256;
/// Distinct keys, written in turn.
pub const KEYS: u64 = 1_000;
/// Connections to one member: as many clients share each as etcd's own benchmark lets by default at most.
const CONNECTIONS: usize = 8;
/// Longest wait for a group to be as wanted.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
pub const AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for one write.
const WRITE: Duration = Duration::from_secs(5);

/// Where a member listens for clients.
#[derive(Debug, Clone)]
pub enum Door {
    /// Our admin socket.
    Ours(PathBuf),
    /// etcd's client port on loopback, without TLS.
    Etcd(u16),
}

/// Connections to one member. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    door: Door,
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
    written: Arc<AtomicU64>,
}

impl Client {
    /// Waits until the member listens.
    pub async fn connect(door: Door) -> Result<Self> {
        let opened = async {
            loop {
                match open(&door).await {
                    Ok(channels) => return channels,
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        };
        let channels = tokio::time::timeout(PATIENCE, opened).await?;
        Ok(Self { door, channels: channels.into(), next: Arc::default(), written: Arc::default() })
    }

    /// Where it connects to.
    pub fn door(&self) -> &Door {
        &self.door
    }

    fn channel(&self) -> Channel {
        self.channels[self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len()].clone()
    }

    /// Writes a value that was never written before to one of [`KEYS`] keys. Ok: it is durable.
    pub async fn put(&self, writer: u64) -> Result<(), Status> {
        self.put_within(writer, WRITE).await
    }

    /// The same, with another deadline.
    pub async fn put_within(&self, writer: u64, deadline: Duration) -> Result<(), Status> {
        let count = self.written.fetch_add(1, Ordering::Relaxed);
        let key = (writer.wrapping_mul(7_919).wrapping_add(count)) % KEYS;
        match &self.door {
            Door::Ours(_) => {
                let mut request =
                    Request::new(ApplyRequest { objects: vec![object(key, count)], ..Default::default() });
                request.set_timeout(deadline);
                AdminClient::new(self.channel()).apply(request).await?;
            }
            Door::Etcd(_) => {
                let put = PutRequest {
                    key: format!("/registry/exports/{key}").into_bytes(),
                    value: format!("{count:0VALUE_BYTES$}").into_bytes(),
                };
                let mut request = Request::new(put);
                request.set_timeout(deadline);
                unary::<_, Ignored>(self.channel(), "/etcdserverpb.KV/Put", request).await?;
            }
        }
        Ok(())
    }

    /// Whether this member leads.
    pub async fn leads(&self) -> Result<bool, Status> {
        match &self.door {
            Door::Ours(_) => {
                let mut request = Request::new(StatusRequest {});
                request.set_timeout(WRITE);
                let status = AdminClient::new(self.channel()).status(request).await?.into_inner();
                Ok(status.leader != 0 && status.leader == status.answered_by)
            }
            Door::Etcd(_) => {
                let mut request = Request::new(Ignored {});
                request.set_timeout(WRITE);
                let path = "/etcdserverpb.Maintenance/Status";
                let status: MemberStatus = unary(self.channel(), path, request).await?;
                let own = status.header.map_or(0, |header| header.member_id);
                Ok(own != 0 && own == status.leader)
            }
        }
    }
}

async fn open(door: &Door) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(match door {
            Door::Ours(socket) => mesh_tls::grpc::connect_unix(Path::new(socket)).await?,
            Door::Etcd(port) => {
                Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true).connect().await?
            }
        });
    }
    Ok(channels)
}

/// A ServiceExport that takes [`VALUE_BYTES`] as JSON.
fn object(key: u64, count: u64) -> Vec<u8> {
    let document = |padding: &str| {
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
            "metadata": {
                "namespace": "bench", "name": format!("export-{key}"),
                "annotations": {"bench.example/value": padding},
            },
        })
        .to_string()
    };
    let padding = VALUE_BYTES.saturating_sub(document("").len());
    document(&format!("{count:0padding$}")).into_bytes()
}

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// `etcdserverpb.PutRequest`, what is needed of it.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// A message whose contents don't matter.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// `etcdserverpb.StatusResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct MemberStatus {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `etcdserverpb.ResponseHeader`
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_the_size_that_is_promised_and_another_value() {
        assert_eq!(object(7, 1).len(), VALUE_BYTES);
        assert_eq!(object(999, u64::from(u32::MAX)).len(), VALUE_BYTES);
        assert_ne!(object(7, 1), object(7, 2));
    }
}
