//! The SPIFFE Workload API: a process gets the certificate of the workload that it is, and every new one; and tokens.
//!
//! Source: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>.

use std::collections::HashMap;

use futures::Stream;
use mesh_model::resource::NamespacedName;
use mesh_tls::jwt::MAX_TOKEN;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use xds_proto::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
};

use super::{CallerInfo, Callers, Secrets, Slots, Tokens};
use crate::{bootstrap::unix_now, engine::Engine};

/// Section 3 "Transport" of the SPIFFE Workload API: has to be there with the value `true`, so that nobody who can be
/// made to send a request somewhere (server-side request forgery) is taken for a caller.
const HEADER: &str = "workload.spiffe.io";

/// Bytes of one request: a token is the longest thing in them, beside audiences.
pub const MAX_REQUEST: usize = 2 * MAX_TOKEN;

/// Serves certificates and tokens.
#[derive(Clone)]
pub struct WorkloadApi {
    callers: Callers,
    secrets: Secrets,
    engine: Engine,
    slots: Slots,
    tokens: Tokens,
}

impl WorkloadApi {
    /// Serves what `secrets` keeps to whom `callers` knows.
    pub fn new(callers: Callers, secrets: Secrets, engine: Engine, tokens: Tokens) -> Self {
        Self { callers, secrets, engine, slots: Slots::default(), tokens }
    }

    /// Who calls, if it is a workload.
    fn attested<Q>(&self, request: &Request<Q>) -> Result<(CallerInfo, NamespacedName), Status> {
        check_header(request)?;
        let caller = CallerInfo::from_request(request)?;
        let workload = self.callers.attested(&caller)?;
        Ok((caller, workload))
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.slots.taken()
    }

    /// A stream of answers: the first as soon as there is one, and another whenever it is another.
    fn open<Q, R: PartialEq + Clone + Send + 'static>(
        &self,
        request: &Request<Q>,
        answer: impl Fn(&Self, &NamespacedName) -> Option<R> + Send + 'static,
    ) -> Result<Response<Responses<R>>, Status> {
        let (caller, workload) = self.attested(request)?;
        let slot = self.slots.take(&workload)?;
        self.secrets.keep(&workload);
        let (sender, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(status) = service.serve(&caller, &workload, answer, &sender).await {
                // An error means that the client has gone.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn serve<R: PartialEq + Clone>(
        &self,
        caller: &CallerInfo,
        workload: &NamespacedName,
        answer: impl Fn(&Self, &NamespacedName) -> Option<R>,
        responses: &mpsc::Sender<Result<R, Status>>,
    ) -> Result<(), Status> {
        let (mut certificates, mut engine) = (self.secrets.changes(), self.engine.changes());
        let mut sent = None;
        loop {
            certificates.borrow_and_update();
            engine.borrow_and_update();
            // Also of a stream that stands: the pod may be gone, and another one have come with its name.
            if self.callers.attested(caller)? != *workload {
                return Err(Status::permission_denied(format!("{workload} does not run here any more")));
            }
            let new = answer(self, workload);
            if let Some(response) = new.filter(|new| sent.as_ref() != Some(new)) {
                if responses.send(Ok(response.clone())).await.is_err() {
                    return Ok(());
                }
                sent = Some(response);
            }
            let changed = tokio::select! {
                changed = certificates.changed() => changed,
                changed = engine.changed() => changed,
                () = responses.closed() => return Ok(()),
            };
            changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
        }
    }

    /// The own certificate with the roots of every trust domain; `None` until all of it is there.
    fn svid(&self, workload: &NamespacedName) -> Option<X509svidResponse> {
        let own = self.secrets.x509(workload)?;
        let mut bundles = self.bundles();
        let bundle = bundles.remove(&trust_domain_id(own.id.trust_domain().as_str()))?;
        let svid = X509svid {
            spiffe_id: own.id.to_string(),
            x509_svid: own.chain.concat(),
            x509_svid_key: own.key,
            bundle,
            hint: String::new(),
        };
        Some(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: bundles })
    }

    /// The roots of every trust domain, by its SPIFFE ID.
    fn bundles(&self) -> HashMap<String, Vec<u8>> {
        self.engine.resources(|resources| {
            let bundles = resources.bundles.iter();
            bundles
                .map(|(domain, bundle)| (trust_domain_id(domain.as_str()), bundle.roots.concat()))
                .collect()
        })
    }
}

fn trust_domain_id(name: &str) -> String {
    format!("spiffe://{name}")
}

fn check_header<Q>(request: &Request<Q>) -> Result<(), Status> {
    match request.metadata().get(HEADER) {
        Some(value) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(format!("the metadata {HEADER}: true is missing"))),
    }
}

/// JSON as protobuf has it (`google.protobuf.Value`).
fn value(json: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    let kind = match json {
        Null => Kind::NullValue(0),
        Bool(holds) => Kind::BoolValue(holds),
        Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        String(text) => Kind::StringValue(text),
        Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(value).collect() })
        }
        Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn structure(fields: serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.into_iter().map(|(name, json)| (name, value(json))).collect() }
}

type Responses<R> = std::pin::Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Responses<X509svidResponse>;
    type FetchX509BundlesStream = Responses<X509BundlesResponse>;
    type FetchJWTBundlesStream = Responses<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.open(&request, Self::svid)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.open(&request, |service, _| {
            let bundles = service.bundles();
            (!bundles.is_empty()).then_some(X509BundlesResponse { crl: Vec::new(), bundles })
        })
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let (caller, workload) = self.attested(&request)?;
        let _slot = self.slots.take(&workload)?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        let (id, svid) = self.tokens.fetch(&workload, audience, unix_now()).await?;
        // Asking took a while: the pod may be gone, and another one have come with its name.
        if self.callers.attested(&caller)? != workload {
            return Err(Status::permission_denied(format!("{workload} does not run here any more")));
        }
        let id = id.to_string();
        if !spiffe_id.is_empty() && spiffe_id != id {
            return Err(Status::permission_denied(format!("spiffe_id: the caller is {id}")));
        }
        let svid = Jwtsvid { spiffe_id: id, svid, hint: String::new() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.open(&request, |service, _| {
            let bundles = service.tokens.bundles();
            (!bundles.is_empty()).then_some(JwtBundlesResponse { bundles })
        })
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.attested(&request)?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        let verified = self.tokens.verify(&svid, &audience, unix_now())?;
        let spiffe_id = verified.id.to_string();
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id, claims: Some(structure(verified.claims)) }))
    }
}
