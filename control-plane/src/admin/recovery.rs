//! `Backup`: one revision of the cluster as a stream of bytes. `Rejoin` is for replicas that are not well: see
//! [`crate::quarantine`].

use std::{
    io::{self, Write},
    sync::Arc,
};

use mesh_store::{
    Bytes16, Command, Granted,
    backup::{self, BackupError},
};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::admin::v1::{
    BackupChunk, BackupRequest, RejoinRequest, RejoinResponse, ReplaceRequest, ReplaceResponse,
    recovery_server::Recovery,
};

use super::{
    outlet::{Answers, Outlet, Over},
    while_allowed,
};
use crate::{
    app::{App, read_status, write_status},
    authz::{Action, Caller},
};

/// Bytes of one message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Messages that wait for a slow reader.
const MAX_WAITING: usize = 4;

/// The service.
#[derive(Debug, Clone)]
pub struct RecoveryService(pub Arc<App>);

#[tonic::async_trait]
impl Recovery for RecoveryService {
    type BackupStream = Answers<BackupChunk>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::Backup)?;
        let slot = app.gate.backup(&caller)?;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        if state.cluster.is_none() {
            return Err(Status::failed_precondition(BackupError::NotInitialised.to_string()));
        }
        let now = app.now_unix();
        let (chunks, stream) = Outlet::new(MAX_WAITING, &app.stop);
        tracing::info!(%caller, revision = state.revision, "a backup is taken");
        tokio::task::spawn_blocking(move || {
            let runtime = Handle::current();
            let sink = Sink { chunks: chunks.clone(), runtime, waiting: Vec::with_capacity(CHUNK_BYTES) };
            let written = backup::write(&state, now, env!("CARGO_PKG_VERSION"), sink);
            if let Err(error) = written {
                // If it ends because nobody reads, that was told first.
                chunks.end(Status::aborted(error.to_string()));
            }
            drop((state, slot));
        });
        let (_, extensions, _) = request.into_parts();
        Ok(Response::new(while_allowed(app.clone(), extensions, Action::Backup, stream)))
    }

    async fn replace(&self, request: Request<ReplaceRequest>) -> Result<Response<ReplaceResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::Raft)?;
        let Caller::Replica(old) = caller else {
            return Err(Status::permission_denied(format!("{caller} is no replica of this cluster")));
        };
        let command = Command::ReplaceReplica { old, address: request.into_inner().address };
        // A number is replaced once, so the key follows from it: asking again, or another replica, gives the same.
        let mut key = Bytes16::default();
        key.0.copy_from_slice(&Sha256::digest(format!("replace replica {old}"))[..16]);
        let applied = app.replica.write_once(key, None, command).await.map_err(write_status)?;
        let Granted::Replica(new_id) = applied.granted else {
            return Err(Status::internal("the replica was given no number"));
        };
        tracing::warn!(
            old,
            new = new_id,
            revision = applied.revision,
            "a replica has lost its log and comes back as another one"
        );
        Ok(Response::new(ReplaceResponse { new_id }))
    }

    async fn rejoin(&self, request: Request<RejoinRequest>) -> Result<Response<RejoinResponse>, Status> {
        self.0.admit(request.extensions(), Action::Backup)?;
        Err(Status::failed_precondition(format!(
            "replica {} is well: there is nothing to rejoin for",
            self.0.ca.replica().id
        )))
    }
}

/// Sends what is written, a message at a time.
struct Sink {
    chunks: Outlet<BackupChunk>,
    runtime: Handle,
    waiting: Vec<u8>,
}

impl Sink {
    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::replace(&mut self.waiting, Vec::with_capacity(CHUNK_BYTES));
        let gone = |Over| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has gone");
        self.runtime.block_on(self.chunks.send(BackupChunk { data })).map_err(gone)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(CHUNK_BYTES - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..take]);
        if self.waiting.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() { Ok(()) } else { self.send() }
    }
}
