//! The service of an HTTP filter chain.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    attempts::{self, Body, Done, Job},
    body::ResponseBody,
    filters::{self, Exchange},
    mirror,
    reply::{Reply, finish},
    request::{Head, prepare},
    rewrite::{cluster_name, rewrite},
    scene::Scene,
    switch::{self, Switch, Switching, Tunnel},
};
use crate::{
    config::HttpManager,
    format::Facts,
    outbound::{ClientBody, IdleTimer, ReplayHandle, UpstreamBody},
    policy::Connection,
    route::{Action, Destination, Forward, Picked, Route, RouteTable, is_grpc, redirect_location},
    shared::Shared,
    telemetry::{AccessRecord, Flag, ListenerStats},
};

/// A route table that is replaced while requests are served.
pub type RouteSlot = Arc<ArcSwap<RouteTable>>;

/// An HTTP filter chain at work.
#[derive(Debug)]
pub struct HttpChain {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// What the control plane said.
    pub manager: HttpManager,
    /// The routes of this moment.
    pub routes: RouteSlot,
    /// Counters.
    pub stats: Arc<ListenerStats>,
    /// Everything that all chains have in common.
    pub shared: Arc<Shared>,
    /// What goes on beside its requests.
    pub helpers: JoinSet<()>,
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    /// What is known of it.
    pub connection: Connection,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Value of `x-forwarded-client-cert`, for a verified client.
    pub certificate: Option<HeaderValue>,
    /// The verified client's certificate, in DER.
    pub peer_certificate: Option<Bytes>,
}

/// Serves a request. There is always an answer. If that says that protocols are switched, `tunnels` gets the rest.
pub async fn handle(
    chain: &HttpChain,
    client: &Client,
    request: Request<Incoming>,
    tunnels: &mpsc::UnboundedSender<Tunnel>,
) -> Response<ResponseBody> {
    let start = Instant::now();
    let (mut parts, incoming) = request.into_parts();
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let http2_client = parts.version == Version::HTTP_2;
    let grpc = is_grpc(&parts.headers);
    // What follows on this connection was not looked at (`inbound::framing`).
    let connect = parts.method == Method::CONNECT;
    let last = parts.version < Version::HTTP_2
        && (parts.method == Method::CONNECT || super::hops::asks_to_switch(&parts.headers));
    let mut record = AccessRecord::enabled(chain.shared.access_log)
        .then(|| Box::new(record(chain, client, &parts, start)));
    let prepared = prepare(parts, &chain.manager, client, &mut rand::rng());
    let mut request_id = None;
    let mut response = match prepared {
        _ if chain.shared.overload.sheds() => Reply::overloaded().response(grpc),
        Err(refusal) => {
            let mut response = Reply::new(refusal.status, refusal.text, Flag::BadRequest).response(false);
            let location = refusal.location.and_then(|to| HeaderValue::try_from(to).ok());
            if let Some(location) = location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
        Ok(head) => {
            if chain.manager.request_id_in_response {
                request_id = head.headers.get(super::request::X_REQUEST_ID).cloned();
            }
            let table = chain.routes.load_full();
            let picked = table.pick(&head.view(), &mut rand::rng());
            let body = ClientBody::from(incoming);
            let switching = match (head.switch.clone(), upgrade) {
                (Some(to), Some(client)) => Some(Switching { to, client, tunnels: tunnels.clone() }),
                _ => None,
            };
            let request = Routed { head, body, picked, http2_client, grpc, switching };
            if chain.manager.filters.is_empty() {
                route(chain, client, request, record.as_deref_mut()).await
            } else {
                let exchange = Exchange::new(chain, client, table, request, record.as_deref_mut());
                Box::pin(filters::serve(exchange)).await
            }
        }
    };
    finish(&mut response, &chain.manager, request_id);
    let switched =
        response.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && response.status().is_success());
    if last && !switched {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    chain.stats.codes.count(response.status().as_u16());
    match record {
        None => response,
        Some(mut record) => {
            record.status = response.status().as_u16();
            response.map(|body| ResponseBody::Logged(Box::new(body), record))
        }
    }
}

/// A request, and the route that it takes.
#[derive(Debug)]
pub(super) struct Routed {
    pub(super) head: Head,
    pub(super) body: ClientBody,
    /// `None`: no route matches.
    pub(super) picked: Option<Picked>,
    pub(super) http2_client: bool,
    pub(super) grpc: bool,
    /// It is to switch to another protocol.
    pub(super) switching: Option<Switching>,
}

/// What the router does with it.
pub(super) async fn route(
    chain: &HttpChain,
    client: &Client,
    mut request: Routed,
    record: Option<&mut AccessRecord>,
) -> Response<ResponseBody> {
    let Some(Picked { route, destination }) = request.picked.take() else {
        note(record, Flag::NoRoute);
        return Reply::no_route().response(request.grpc);
    };
    let scene = Scene { connection: &client.connection, route: &route.name, cluster: None };
    match &route.action {
        Action::Forward(forward) => {
            let destination = forward.destinations.get(destination);
            send(chain, scene, &route, forward, destination, request, record).await
        }
        Action::Redirect { to, response: ops } => {
            let location = redirect_location(to, &route.matches.path, &request.head.view());
            let mut response = Response::new(ResponseBody::Empty);
            *response.status_mut() = StatusCode::from_u16(to.status).unwrap_or(StatusCode::FOUND);
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            let values = ops.values(&scene.facts(&request.head));
            ops.apply(response.headers_mut(), values);
            response
        }
        Action::Direct { answer, response: ops } => {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
            let mut response = Reply::new(status, answer.body.clone(), Flag::None).response(false);
            let values = ops.values(&scene.facts(&request.head));
            ops.apply(response.headers_mut(), values);
            response
        }
    }
}

async fn send(
    chain: &HttpChain,
    scene: Scene<'_>,
    route: &Route,
    forward: &Forward,
    destination: Option<&Destination>,
    request: Routed,
    record: Option<&mut AccessRecord>,
) -> Response<ResponseBody> {
    let Routed { mut head, mut body, picked: _, http2_client, grpc, switching } = request;
    let found = destination.and_then(|d| {
        let name = cluster_name(&d.cluster, d.cluster_header.as_ref(), &head.headers)?;
        Some((d, chain.shared.cluster(&name)?, name))
    });
    let Some((destination, cluster, name)) = found else {
        note(record, Flag::NoCluster);
        return Reply::no_cluster(forward.cluster_not_found_status).response(grpc);
    };
    let allowed = |switch: &Switch| switch.is_allowed(&forward.upgrades, &chain.manager.upgrades);
    if head.switch.as_ref().is_some_and(|switch| !allowed(switch)) {
        note(record, Flag::BadRequest);
        return Reply::new(StatusCode::FORBIDDEN, "", Flag::BadRequest).response(grpc);
    }
    let scene = Scene { cluster: Some(&name), ..scene };
    rewrite(&mut head, route, forward, destination, &scene);
    let stream_idle = forward.idle_timeout.or(chain.manager.stream_idle_timeout);
    if !forward.mirrors.is_empty() {
        Box::pin(mirror::send(&chain.shared, forward, &head, &mut body, http2_client, stream_idle)).await;
    }
    let (body, body_ended) = self::body(body, forward, stream_idle);
    let stream_limit = match (forward.max_stream, &forward.grpc_timeout) {
        (_, Some(grpc_timeout)) if grpc => grpc_timeout.limit(&head.headers),
        (Some(own), _) => Some(own).filter(|own| !own.is_zero()),
        (None, _) => chain.manager.times.stream,
    };
    let kept = destination.response.reads_request().then(|| head.clone());
    let job = Job {
        cluster,
        forward,
        destination,
        head,
        body,
        body_ended,
        http2_client,
        stream_idle,
        stream_limit,
        request_limit: chain.manager.times.request,
        scene,
    };
    let Done { result, attempts, upstream } = match switching {
        Some(switching) => Box::pin(switch::run(job, switching)).await,
        None => attempts::run(job).await,
    };
    let flag = result.as_ref().err().map_or(Flag::None, |reply| reply.flag);
    if let Some(record) = record {
        record.cluster = Some(name.clone());
        record.attempts = attempts;
        record.upstream = upstream;
        record.flag = flag;
    }
    match result {
        Ok(response) => response,
        Err(reply) => {
            let mut response = reply.response(grpc);
            let facts = kept.as_ref().map_or_else(|| scene.without_head(), |head| scene.facts(head));
            let status = Some(response.status().as_u16());
            let facts = Facts { upstream, attempts: Some(attempts), status, ..facts };
            let values = destination.response.values(&facts);
            destination.response.apply(response.headers_mut(), values);
            response
        }
    }
}

fn body(
    incoming: ClientBody,
    forward: &Forward,
    stream_idle: Option<Duration>,
) -> (Body, Option<[oneshot::Receiver<()>; 2]>) {
    if incoming.is_end_stream() {
        return (Body::Empty, None);
    }
    let ((ended, receiver), (also, too)) = (oneshot::channel(), oneshot::channel());
    let stream = UpstreamBody::stream(incoming, IdleTimer::new(stream_idle), [ended, also]);
    let keep = forward.retry.as_ref().is_some_and(|policy| policy.on.after_sending());
    let body = if keep {
        Body::Replay(ReplayHandle::new(stream))
    } else {
        Body::Once(Some(UpstreamBody::Stream(stream)))
    };
    (body, Some([receiver, too]))
}

pub(super) fn note(record: Option<&mut AccessRecord>, flag: Flag) {
    if let Some(record) = record {
        record.flag = flag;
    }
}

fn record(chain: &HttpChain, client: &Client, parts: &http::request::Parts, start: Instant) -> AccessRecord {
    let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    AccessRecord {
        start,
        listener: chain.listener.clone(),
        client: client.connection.remote,
        method: parts.method.to_string(),
        authority: parts.uri.authority().map(|a| a.as_str()).or(host).unwrap_or("-").to_owned(),
        path: parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        status: 0,
        flag: Flag::None,
        denied_by: None,
        cluster: None,
        upstream: None,
        attempts: 0,
        bytes: 0,
        wanted: chain.shared.access_log,
    }
}
