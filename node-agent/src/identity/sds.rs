//! `SecretDiscoveryService` on the agent's socket: a process gets the secrets of the workload that it is.

use futures::Stream;
use mesh_model::resource::NamespacedName;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_proto::envoy::service::{
    discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    secret::v3::secret_discovery_service_server::SecretDiscoveryService,
};

use super::{
    CallerInfo, Callers, Secrets, Slots,
    callers::is_node_proxy,
    session::{Session, SessionError},
    slots::Opened,
};
use crate::engine::Engine;

/// Responses that a client has not read yet.
const BUFFER: usize = 4;

/// Serves secrets.
#[derive(Clone)]
pub struct SdsService {
    callers: Callers,
    secrets: Secrets,
    engine: Engine,
    pub(super) slots: Slots,
}

impl SdsService {
    /// Serves what `secrets` keeps to whom `callers` knows.
    pub fn new(callers: Callers, secrets: Secrets, engine: Engine) -> Self {
        Self { callers, secrets, engine, slots: Slots::default() }
    }

    /// Streams of secrets that are open.
    pub fn open_streams(&self) -> usize {
        self.slots.taken()
    }

    /// Runs a stream of either kind to its end.
    async fn serve<Q: Asks, R>(
        self,
        opened: Opened,
        caller: CallerInfo,
        mut requests: Streaming<Q>,
        respond: impl Fn(&mut Session, &Secrets, &NamespacedName) -> Option<R>,
        responses: &mpsc::Sender<Result<R, Status>>,
    ) -> Result<(), Status> {
        let mut session = Session::default();
        let (mut certificates, mut engine) = (self.secrets.changes(), self.engine.changes());
        // Only the first request of a stream must name the node.
        let first = self.slots.first(opened, &self.callers, &caller, &mut requests, Q::node_id);
        let first = tokio::select! {
            first = first => first?,
            () = responses.closed() => None,
        };
        let Some((first, stream)) = first else { return Ok(()) };
        let workload = stream.workload();
        if is_node_proxy(workload) {
            return Err(Status::permission_denied(
                "a proxy of the node has no certificate, and is given none of its pods'",
            ));
        }
        self.secrets.keep(workload);
        let acking = self.secrets.acks().open(workload.clone());
        let mut next = Some(first);
        loop {
            if let Some(request) = next.take() {
                request.tell(&mut session).map_err(|error| Status::invalid_argument(error.to_string()))?;
            }
            // Before a key is sent, whatever was true when the stream was opened.
            stream.attest()?;
            if let Some(response) = respond(&mut session, &self.secrets, workload)
                && responses.send(Ok(response)).await.is_err()
            {
                return Ok(());
            }
            acking.update(session.wanted(), session.acked());
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    next = Some(request);
                }
                changed = certificates.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
                }
                changed = engine.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
                }
                () = responses.closed() => return Ok(()),
            }
        }
    }

    fn open<Q: Asks, R: Send + 'static>(
        &self,
        request: Request<Streaming<Q>>,
        respond: impl Fn(&mut Session, &Secrets, &NamespacedName) -> Option<R> + Send + Sync + 'static,
    ) -> Result<Response<Responses<R>>, Status> {
        let caller = CallerInfo::from_request(&request)?;
        let opened = self.slots.open(&self.callers, &caller)?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.serve(opened, caller, request.into_inner(), respond, &sender).await {
                // An error means that the client has gone.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Responses<R> = std::pin::Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// What both kinds of requests have.
trait Asks: Send + 'static {
    fn node_id(&self) -> &str;
    fn tell(&self, session: &mut Session) -> Result<(), SessionError>;
}

impl Asks for DiscoveryRequest {
    fn node_id(&self) -> &str {
        self.node.as_ref().map_or("", |node| &node.id)
    }
    fn tell(&self, session: &mut Session) -> Result<(), SessionError> {
        if let Some(error) = &self.error_detail {
            tracing::warn!(node = self.node_id(), reason = error.message, "a secret was refused");
        }
        session.on_request(self)
    }
}

impl Asks for DeltaDiscoveryRequest {
    fn node_id(&self) -> &str {
        self.node.as_ref().map_or("", |node| &node.id)
    }
    fn tell(&self, session: &mut Session) -> Result<(), SessionError> {
        if let Some(error) = &self.error_detail {
            tracing::warn!(node = self.node_id(), reason = error.message, "a secret was refused");
        }
        session.on_delta_request(self)
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.open(request, |session, secrets, workload| {
            session.respond_delta(|name| secrets.secret(workload, name))
        })
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.open(request, |session, secrets, workload| {
            session.respond(|name| secrets.secret(workload, name))
        })
    }

    async fn fetch_secrets(
        &self,
        _request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are streamed: use StreamSecrets or DeltaSecrets"))
    }
}
