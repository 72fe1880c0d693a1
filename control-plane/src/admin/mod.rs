//! The door for people and tools.

mod absent;
pub mod barrier;
pub mod explain;
pub mod objects;
pub mod observe;
pub mod outlet;
pub mod recovery;
pub mod render;
pub mod replicas;
pub mod sizes;
pub mod status;
pub mod tokens;
pub mod watch;

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use mesh_store::{Command, ObjectChange};
use tonic::{Extensions, Request, Response, Status};
use xds_proto::isthmus::{
    admin::v1::{
        ApplyRequest, ApplyResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest, DeleteResponse,
        JoinRequest, JoinResponse, ListRequest, ListResponse, LoadHereRequest, LoadReports, ObserveRequest,
        StatusRequest, StatusResponse, WaitHereRequest, WaitProgress, WaitReports, WaitRequest, WatchEvent,
        WatchRequest, admin_server::Admin,
    },
    bootstrap::v1::FlowBatch,
};

use outlet::{Answers, Outlet, stopping};

use crate::{
    app::{App, read_status, write_status},
    authz::Action,
    ca::admission,
    federation,
    xds::Views,
};

/// How long the local state may lag behind a write that another replica has acknowledged.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug, Clone)]
pub struct AdminService(pub Arc<App>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::Write)?;
        let request = request.into_inner();
        let wait = request.wait && !request.dry_run;
        let slot = if wait { Some(app.gate.wait(&caller)?) } else { None };
        let timeout = barrier::timeout("wait_timeout_ms", request.wait_timeout_ms)?;
        let objects = objects::parse(&request.objects)?;
        sizes::check(app, &objects).await?;
        let command = Command::Apply { objects, dry_run: request.dry_run };
        let applied = app.replica.write(command).await.map_err(write_status)?;
        tracing::info!(
            %caller, revision = applied.revision, objects = applied.outcomes.len(), dry_run = request.dry_run,
            "applied objects"
        );
        let wait_revision = self.changed_at(&applied).await;
        let mut waiting_for = Vec::new();
        if wait {
            let nobody = |_| std::future::ready(Ok::<_, Infallible>(()));
            let last = barrier::wait(app, wait_revision, timeout, nobody).await;
            waiting_for = barrier::sentences(&last.ok_or_else(stopping)?);
        }
        drop(slot);
        let outcomes = objects::outcomes(&applied.outcomes);
        Ok(Response::new(ApplyResponse { revision: applied.revision, outcomes, waiting_for, wait_revision }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::Write)?;
        let keys = objects::keys(&request.get_ref().objects)?;
        let applied = app.replica.write(Command::Delete { keys }).await.map_err(write_status)?;
        tracing::info!(
            %caller, revision = applied.revision, objects = applied.outcomes.len(), "deleted objects"
        );
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

    type WatchStream = Answers<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let app = self.0.clone();
        let caller = app.admit(request.extensions(), Action::Read)?;
        let slots = app.gate.watch(&caller)?;
        let (_, extensions, request) = request.into_parts();
        let filter = objects::Filter::new(&ListRequest {
            kind: request.kind,
            namespace: request.namespace,
            name: request.name,
            label_selector: request.label_selector,
        })?;
        app.replica.linearizable().await.map_err(read_status)?;
        let options = watch::Options {
            from_revision: request.from_revision,
            bookmarks: request.bookmarks,
            slots,
            who: caller.to_string(),
        };
        let stream = watch::watch(app, filter, options).await?;
        Ok(Response::new(while_allowed(self.0.clone(), extensions, Action::Read, stream)))
    }

    type WaitStream = Answers<WaitProgress>;

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let app = self.0.clone();
        let caller = app.admit(request.extensions(), Action::Read)?;
        let slot = app.gate.wait(&caller)?;
        let (_, extensions, WaitRequest { revision, timeout_ms }) = request.into_parts();
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let timeout = barrier::timeout("timeout_ms", timeout_ms)?;
        if revision == 0 || revision > state.revision {
            let newest = state.revision;
            return Err(Status::invalid_argument(format!(
                "revision: {revision} is none that there has been, the newest is {newest}"
            )));
        }
        drop(state);
        let (outlet, stream) = Outlet::new(1, &app.stop);
        tokio::spawn(async move {
            if barrier::wait(&app, revision, timeout, |progress| outlet.send(progress)).await.is_none() {
                // Nobody listens or reads, which is known already, or the replica drains.
                outlet.end(stopping());
            }
            drop(slot);
        });
        Ok(Response::new(while_allowed(self.0.clone(), extensions, Action::Read, stream)))
    }

    type WaitHereStream = Answers<WaitReports>;

    async fn wait_here(
        &self,
        request: Request<WaitHereRequest>,
    ) -> Result<Response<Self::WaitHereStream>, Status> {
        let app = self.0.clone();
        let caller = app.admit(request.extensions(), Action::Status)?;
        let slot = app.gate.wait(&caller)?;
        let revision = request.into_inner().revision;
        let (outlet, stream) = Outlet::new(4, &app.stop);
        tokio::spawn(async move {
            tokio::select! {
                () = barrier::here(&app, revision, |reports| outlet.send(reports)) => {}
                () = outlet.over() => {}
            }
            drop(slot);
        });
        Ok(Response::new(stream))
    }

    async fn load_here(&self, request: Request<LoadHereRequest>) -> Result<Response<LoadReports>, Status> {
        self.0.admit(request.extensions(), Action::Status)?;
        Ok(Response::new(crate::overflow::here(&self.0)))
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
        let caller = self.0.admit(request.extensions(), Action::CreateToken)?;
        admission::create(&self.0, &caller, request.get_ref()).await.map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = self.0.admit(request.extensions(), Action::JoinMesh)?;
        tracing::info!(%caller, "is asked to join another cluster");
        federation::join::join(&self.0, &request.get_ref().token).await.map(Response::new)
    }

    type ObserveStream = Answers<FlowBatch>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.0.admit(request.extensions(), Action::Observe)?;
        let slots = self.0.gate.watch(&caller)?;
        let (_, extensions, request) = request.into_parts();
        let stream = observe::observe(self.0.clone(), request, slots);
        Ok(Response::new(while_allowed(self.0.clone(), extensions, Action::Observe, stream)))
    }
}

impl AdminService {
    /// The newest revision at which one of these objects changed, which is that of the write unless all of them were
    /// there already: somebody who repeats an apply wants to know whether it has arrived.
    async fn changed_at(&self, applied: &mesh_store::Applied) -> u64 {
        let changed = |outcome: &mesh_store::ObjectOutcome| outcome.change != ObjectChange::Unchanged;
        if applied.outcomes.iter().any(changed) {
            return applied.revision;
        }
        // The write was answered by the leader; this replica may not have applied it yet.
        let Ok(state) = self.0.replica.linearizable().await else { return applied.revision };
        let stored = applied.outcomes.iter().filter_map(|outcome| state.object_meta.get(&outcome.key));
        stored.map(|meta| meta.revision).max().unwrap_or(applied.revision)
    }
}

/// A stream that may last ends when its caller's rights do, with the refusal.
pub(crate) fn while_allowed<T: Send + 'static>(
    app: Arc<App>,
    extensions: Extensions,
    action: Action,
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Answers<T> {
    let ended = Box::pin(async move { app.refused_later(extensions, action).await });
    let both = (Box::pin(stream), ended);
    Box::pin(futures::stream::unfold(Some(both), |both| async move {
        let (mut stream, mut ended) = both?;
        tokio::select! {
            biased;
            refusal = &mut ended => Some((Err(refusal), None)),
            item = stream.next() => item.map(|item| (item, Some((stream, ended)))),
        }
    }))
}

/// Waits until this replica's views have reached a revision, or for a while.
pub(crate) async fn compiled(app: &App, revision: u64) {
    let mut changed = app.views.changed();
    // An error is the end of the replica; late is told by the caller's own means.
    let _ = tokio::time::timeout(CATCH_UP, changed.wait_for(|reached| *reached >= revision)).await;
}
