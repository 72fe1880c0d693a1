//! The door for people and tools.

pub mod objects;
pub mod observe;
pub mod render;
pub mod replicas;
pub mod selector;
pub mod status;
pub mod watch;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use mesh_store::Command;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::{
    admin::v1::{
        ApplyRequest, ApplyResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest, DeleteResponse,
        JoinRequest, JoinResponse, ListRequest, ListResponse, ObserveRequest, StatusRequest, StatusResponse,
        WatchEvent, WatchRequest, admin_server::Admin,
    },
    bootstrap::v1::FlowBatch,
};

use crate::{
    app::{App, read_status, write_status},
    authz::Action,
    ca::admission,
    federation,
    xds::Views,
};

/// Wait of an apply unless told otherwise, and at most.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// How long the local state may lag behind a write that another replica has acknowledged.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug, Clone)]
pub struct AdminService(pub Arc<App>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::Write)?;
        let request = request.into_inner();
        let objects = objects::parse(&request.objects)?;
        let command = Command::Apply { objects, dry_run: request.dry_run };
        let applied = app.replica.write(command).await.map_err(write_status)?;
        let waiting_for = if request.wait && !request.dry_run {
            let timeout = match request.wait_timeout_ms {
                0 => DEFAULT_WAIT,
                ms => Duration::from_millis(u64::from(ms)).min(MAX_WAIT),
            };
            status::wait_everywhere(app, applied.revision, timeout).await
        } else {
            Vec::new()
        };
        let outcomes = objects::outcomes(&applied.outcomes);
        Ok(Response::new(ApplyResponse { revision: applied.revision, outcomes, waiting_for }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::Write)?;
        let keys = objects::keys(&request.get_ref().objects)?;
        let applied = app.replica.write(Command::Delete { keys }).await.map_err(write_status)?;
        let outcomes = objects::outcomes(&applied.outcomes);
        Ok(Response::new(DeleteResponse { revision: applied.revision, outcomes }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::Read)?;
        let filter = objects::Filter::new(request.get_ref())?;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        // The status is compiled from the state; wait for that of this revision.
        compiled(app, state.revision).await;
        let model = app.views.model();
        let objects = filter
            .select(&state)
            .map(|(_, object, stored)| objects::encode(object, stored, &state, model.as_deref()))
            .chain(model.iter().flat_map(|model| filter.imported(&state, model)))
            .collect();
        Ok(Response::new(ListResponse { revision: state.revision, objects }))
    }

    type WatchStream = Streamed<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let app = self.0.clone();
        app.admit(request.extensions(), Action::Read)?;
        let request = request.into_inner();
        let filter = objects::Filter::new(&ListRequest {
            kind: request.kind,
            namespace: request.namespace,
            name: request.name,
            label_selector: String::new(),
        })?;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        compiled(&app, state.revision.max(request.from_revision)).await;
        let mut changes = app.views.changed();
        let mut watcher = watch::Watcher::new(filter, request.from_revision);
        let (events, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                // Marked as seen before it is read, so that no change falls between the two.
                changes.borrow_and_update();
                let told = watcher.advance(&app.replica.applied(), app.views.model().as_ref());
                for event in told {
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = events.closed() => return,
                    () = app.stop.cancelled() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.admit(request.extensions(), Action::Status)?;
        let local = request.metadata().contains_key(status::LOCAL_ONLY);
        let answer = if local { status::local(&self.0) } else { status::everywhere(&self.0).await };
        Ok(Response::new(answer))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        self.0.admit(request.extensions(), Action::CreateToken)?;
        admission::create(&self.0, request.get_ref()).await.map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.0.admit(request.extensions(), Action::JoinMesh)?;
        federation::join::join(&self.0, &request.get_ref().token).await.map(Response::new)
    }

    type ObserveStream = Streamed<FlowBatch>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        self.0.admit(request.extensions(), Action::Observe)?;
        let stream = observe::observe(self.0.clone(), request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Waits until this replica's views have reached a revision, or for a while.
pub(crate) async fn compiled(app: &App, revision: u64) {
    let mut changed = app.views.changed();
    // An error is the end of the replica; late is told by the caller's own means.
    let _ = tokio::time::timeout(CATCH_UP, changed.wait_for(|reached| *reached >= revision)).await;
}
