//! Connections that become something else than HTTP: `upgrade` (RFC 9110 7.8), `CONNECT` (RFC 9110 9.3.6), and `CONNECT` with a
//! `:protocol` over HTTP/2 (RFC 8441), each turned into what the other side speaks.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::Engine as _;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::{body::Incoming, ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::{
    answer::{self, Passing},
    attempts::{ActiveCount, Done, Job},
    body::ResponseBody,
    choice::{Choice, dropped},
    hops,
    reply::Reply,
    request::Head,
};
use crate::{
    balance::Failure,
    config::{Priority, UpstreamProtocol},
    gateway::copy,
    io::Io,
    limits,
    outbound::{
        ConnectFailure, Deadline, Host, IdleTimer, Lease, UpstreamBody, UpstreamCluster, Want, acquire_as,
        behalf, dial,
    },
    telemetry::Flag,
    tls::Offer,
};

const WEBSOCKET: &str = "websocket";
const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
/// Endpoints that are tried. Nothing is sent twice: only connections that fail are tried again.
const CONNECTS: usize = 3;

/// What a client wants to switch to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// This protocol.
    Upgrade(HeaderValue),
    /// Whatever the two ends speak.
    Connect,
}

impl Switch {
    /// The name by which configuration allows it, lower case.
    pub fn name(&self) -> String {
        match self {
            Self::Upgrade(to) => String::from_utf8_lossy(to.as_bytes()).to_ascii_lowercase(),
            Self::Connect => "connect".to_owned(),
        }
    }

    /// Whether it is allowed: by what the route says of it, else the listener.
    pub(super) fn is_allowed(&self, route: &[(String, bool)], manager: &[(String, bool)]) -> bool {
        let name = self.name();
        let said = |all: &[(String, bool)]| all.iter().find(|(known, _)| *known == name).map(|(_, on)| *on);
        said(route).or_else(|| said(manager)).unwrap_or(false)
    }
}

/// Bytes in both directions until one of the two ends; run beside the client's connection, and no longer than that is permitted.
pub type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A client's end of a connection that is to switch.
#[derive(Debug)]
pub(super) struct Switching {
    pub(super) to: Switch,
    pub(super) client: OnUpgrade,
    pub(super) tunnels: mpsc::UnboundedSender<Tunnel>,
}

/// The endpoint's end.
enum End {
    Open(Box<Io>),
    Upgraded(OnUpgrade, Lease),
}

enum Begun {
    Switched(End, Response<()>),
    Answer(Response<Incoming>, Lease),
    Failed(Reply, bool),
}

/// Asks an endpoint to switch, and connects both ends if it does.
pub(super) async fn run(job: Job<'_>, switching: Switching) -> Done {
    let cluster = job.cluster.clone();
    let mut done =
        Done { result: Err(Reply::reset("overflow", Flag::Overflow)), attempts: 0, upstream: None };
    if let Some(reply) = dropped(&cluster) {
        done.result = Err(reply);
        return done;
    }
    let choice = Choice::of(&job);
    let Some(permit) = cluster.breaker(choice.priority).requests.try_take() else {
        cluster.stats.overflow.fetch_add(1, Ordering::Relaxed);
        return done;
    };
    let active = ActiveCount::new(&cluster);
    let patience = job.stream_idle.unwrap_or(limits::STREAM_IDLE);
    let mut tried: Vec<Arc<Host>> = vec![];
    while tried.len() < CONNECTS {
        let Some(host) = choice.host(&cluster, &tried) else {
            cluster.stats.no_endpoint.fetch_add(1, Ordering::Relaxed);
            done.result = Err(Reply::no_healthy_upstream());
            return done;
        };
        done.attempts += 1;
        done.upstream = Some(host.address);
        let serving = cluster.begin(&host);
        let asked = Asked {
            head: &job.head,
            terminates_connect: job.forward.terminates_connect,
            http2_client: job.http2_client,
            priority: choice.priority,
        };
        let begun = tokio::time::timeout(patience, begin(asked, &cluster, &host, &switching.to)).await;
        match begun.unwrap_or_else(|_| Begun::Failed(Reply::timeout(), false)) {
            Begun::Failed(reply, again) => {
                cluster.on_failure(&host, Failure::Local);
                done.result = Err(reply);
                if !again {
                    return done;
                }
                tried.push(host);
            }
            Begun::Answer(response, lease) => {
                cluster.stats.codes.count(response.status().as_u16());
                let passing = Passing {
                    lease,
                    deadline: Deadline::from_now(None),
                    idle: IdleTimer::new(job.stream_idle),
                    guards: Box::new((permit, serving, active)),
                };
                done.result = Ok({
                    let facts = job.scene.facts(&job.head);
                    answer::pass(response, passing, &job.destination.response, facts, false)
                });
                return done;
            }
            Begun::Switched(end, answer) => {
                cluster.on_success(&host);
                cluster.stats.codes.count(answer.status().as_u16());
                let guards = (permit, serving, active);
                let tunnel = tunnel(switching.client, end, job.stream_idle, guards);
                if switching.tunnels.send(Box::pin(tunnel)).is_err() {
                    done.result = Err(Reply::reset("connection termination", Flag::Reset));
                    return done;
                }
                let mut response = switched(&switching.to, job.http2_client, answer);
                let values = job.destination.response.values(&job.scene.facts(&job.head));
                job.destination.response.apply(response.headers_mut(), values);
                choice.tell(&mut response);
                done.result = Ok(response);
                return done;
            }
        }
    }
    done
}

/// What the client is told.
fn switched(to: &Switch, http2: bool, answer: Response<()>) -> Response<ResponseBody> {
    let (mut parts, ()) = answer.into_parts();
    let asked = parts.headers.get(header::UPGRADE).cloned();
    hops::strip_response(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.status = StatusCode::OK;
    if let Switch::Upgrade(to) = to
        && !http2
    {
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, asked.unwrap_or_else(|| to.clone()));
    }
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

async fn tunnel(client: OnUpgrade, end: End, idle: Option<Duration>, guards: impl Send) {
    let _guards = guards;
    let Ok(client) = client.await else { return };
    let client = TokioIo::new(client);
    let copied = match end {
        End::Open(upstream) => copy(client, *upstream, idle).await,
        End::Upgraded(upstream, _lease) => match upstream.await {
            Ok(upstream) => copy(client, TokioIo::new(upstream), idle).await,
            Err(error) => {
                tracing::debug!(%error, "the endpoint did not switch");
                return;
            }
        },
    };
    if let Err(error) = copied {
        tracing::debug!(%error, "switched connection broke");
    }
}

/// What of a request the endpoint is to know. Not the whole job, whose body no two threads may look at.
#[derive(Clone, Copy)]
struct Asked<'a> {
    head: &'a Head,
    terminates_connect: bool,
    http2_client: bool,
    priority: Priority,
}

async fn begin(asked: Asked<'_>, cluster: &Arc<UpstreamCluster>, host: &Arc<Host>, to: &Switch) -> Begun {
    let unreachable = |error: crate::outbound::ConnectError| {
        if error.failure == ConnectFailure::Overflow {
            return Begun::Failed(Reply::reset("overflow", Flag::Overflow), false);
        }
        let reason = format!("{}, transport failure reason: {error}", error.reset_reason());
        Begun::Failed(Reply::reset(&reason, Flag::ConnectFailure), true)
    };
    if *to == Switch::Connect && asked.terminates_connect {
        return match dial(cluster, host, behalf().source, Offer::Nothing).await {
            Ok(io) => Begun::Switched(End::Open(Box::new(io)), Response::new(())),
            Err(error) => unreachable(error),
        };
    }
    // Where ALPN would choose, HTTP/1.1 is offered: not every HTTP/2 server takes `CONNECT` with a `:protocol`.
    let want = match cluster.config.protocol {
        UpstreamProtocol::Http2 => Want::Http2,
        UpstreamProtocol::Http1 | UpstreamProtocol::Auto | UpstreamProtocol::Downstream => Want::Http1,
    };
    let mut lease = match acquire_as(cluster, host, want, asked.priority).await {
        Ok(lease) => lease,
        Err(error) => return unreachable(error),
    };
    let Some(request) = request(asked, to, lease.is_http2()) else {
        let reply =
            Reply::new(StatusCode::BAD_GATEWAY, "only websocket can be asked for over HTTP/2", Flag::Reset);
        return Begun::Failed(reply, false);
    };
    let http2 = lease.is_http2();
    match lease.send(request).await {
        Ok(mut response) => {
            let agreed = match to {
                Switch::Upgrade(_) if !http2 => response.status() == StatusCode::SWITCHING_PROTOCOLS,
                Switch::Upgrade(_) | Switch::Connect => response.status().is_success(),
            };
            if !agreed {
                return Begun::Answer(response, lease);
            }
            let upgrade = hyper::upgrade::on(&mut response);
            Begun::Switched(End::Upgraded(upgrade, lease), response.map(drop))
        }
        Err(error) => {
            tracing::debug!(?error, "no answer to a request to switch");
            let again = matches!(error, crate::outbound::SendError::NotSent(_));
            Begun::Failed(Reply::reset("connection termination", Flag::Reset), again)
        }
    }
}

fn request(asked: Asked<'_>, to: &Switch, http2: bool) -> Option<Request<UpstreamBody>> {
    let head = asked.head;
    let mut request = Request::new(UpstreamBody::Empty);
    *request.headers_mut() = head.headers.clone();
    let mut parts = http::uri::Parts::default();
    match to {
        Switch::Connect => {
            *request.method_mut() = Method::CONNECT;
            parts.authority = Some(head.authority.clone());
        }
        Switch::Upgrade(name) if http2 => {
            if !name.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()) {
                return None;
            }
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from_static(WEBSOCKET));
            parts.scheme = head.scheme.parse().ok();
            parts.authority = Some(head.authority.clone());
            parts.path_and_query = Some(head.path.clone());
        }
        Switch::Upgrade(name) => {
            *request.method_mut() = head.method.clone();
            parts.path_and_query = Some(head.path.clone());
            let headers = request.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, name.clone());
            // Over HTTP/2 there is none (RFC 8441 5), and over HTTP/1.1 there must be (RFC 6455 4.1).
            if asked.http2_client && name.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()) {
                headers.entry(SEC_WEBSOCKET_KEY).or_insert_with(websocket_key);
            }
        }
    }
    if http2 {
        *request.version_mut() = Version::HTTP_2;
    } else if let Ok(host) = HeaderValue::from_str(head.authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}

fn websocket_key() -> HeaderValue {
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    HeaderValue::try_from(key).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_the_last_word_about_what_is_allowed() {
        let websocket = Switch::Upgrade(HeaderValue::from_static("WebSocket"));
        let on = [(WEBSOCKET.to_owned(), true)];
        let off = [(WEBSOCKET.to_owned(), false)];
        assert!(websocket.is_allowed(&[], &on) && websocket.is_allowed(&on, &off));
        assert!(!websocket.is_allowed(&off, &on) && !websocket.is_allowed(&[], &[]));
        assert!(!Switch::Connect.is_allowed(&[], &on));
        assert!(Switch::Connect.is_allowed(&[("connect".to_owned(), true)], &[]));
    }
}
