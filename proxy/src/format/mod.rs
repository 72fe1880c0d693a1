//! Envoy's command operators (`%REQ(:path)%`, `%START_TIME%`): texts with places for what is known of a request. Pure.
//!
//! | operator | what it is |
//! | --- | --- |
//! | `REQ(X?Y):Z`, `RESP(X?Y):Z`, `TRAILER(X?Y):Z` | a header, or another where that is missing, cut to Z bytes |
//! | `REQ_WITHOUT_QUERY(X?Y):Z` | the same without what follows a `?` |
//! | `START_TIME(format)` | when the request came, UTC; `%Y %m %d %H %M %S %f %3f %6f %9f %s %F %T %Z %e %b %a %j %y`; RFC 3339 without a format |
//! | `PROTOCOL`, `RESPONSE_CODE`, `RESPONSE_CODE_DETAILS`, `RESPONSE_FLAGS`, `GRPC_STATUS_NUMBER` | |
//! | `BYTES_RECEIVED`, `BYTES_SENT`, `DURATION`, `REQUEST_DURATION`, `RESPONSE_DURATION`, `RESPONSE_TX_DURATION` | bytes, milliseconds |
//! | `UPSTREAM_HOST`, `UPSTREAM_REMOTE_ADDRESS` (`_WITHOUT_PORT`), `UPSTREAM_REMOTE_PORT`, `UPSTREAM_CLUSTER`, `UPSTREAM_REQUEST_ATTEMPT_COUNT` | |
//! | `DOWNSTREAM_REMOTE_ADDRESS`, `DOWNSTREAM_DIRECT_REMOTE_ADDRESS`, `DOWNSTREAM_LOCAL_ADDRESS` (each `_WITHOUT_PORT`), `DOWNSTREAM_REMOTE_PORT`, `DOWNSTREAM_DIRECT_REMOTE_PORT`, `DOWNSTREAM_LOCAL_PORT` | |
//! | `DOWNSTREAM_PEER_URI_SAN`, `REQUESTED_SERVER_NAME`, `ROUTE_NAME`, `HOSTNAME`, `REQUEST_SCHEME` | |

mod parse;
mod time;

use std::{borrow::Cow, net::SocketAddr, time::Duration, time::SystemTime};

use http::{HeaderMap, HeaderName};
use serde::{Serialize, Serializer};

use crate::{policy::Connection, route::RequestView};

pub use parse::FormatError;

/// A text with operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    source: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Operator, Option<usize>),
}

/// Where a header is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    /// A request's, without what follows a `?`.
    RequestPath,
    Response,
    Trailers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Header(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Host,
    Port,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    Header(Message, Name, Option<Name>),
    StartTime(Vec<time::Field>),
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    GrpcStatus,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    Upstream(Part),
    UpstreamCluster,
    Attempts,
    Remote(Part),
    DirectRemote(Part),
    Local(Part),
    PeerUriSan,
    ServerName,
    RouteName,
    Hostname,
}

/// What is known of a request at the moment. What is not known is missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// Its head.
    pub request: Option<RequestView<'a>>,
    /// Headers of the answer.
    pub response: Option<&'a HeaderMap>,
    /// Trailers of the answer.
    pub trailers: Option<&'a HeaderMap>,
    /// The client's connection.
    pub connection: Option<&'a Connection>,
    /// The client behind trusted proxies; where missing, the connection's.
    pub remote: Option<SocketAddr>,
    /// `HTTP/1.1` and so on.
    pub protocol: Option<&'a str>,
    /// When it came.
    pub start: Option<SystemTime>,
    /// Status of the answer.
    pub status: Option<u16>,
    /// Why the answer is what it is.
    pub details: Option<&'a str>,
    /// Envoy's response flags.
    pub flags: Option<&'a str>,
    /// Of gRPC.
    pub grpc_status: Option<u32>,
    /// Of the request's body.
    pub bytes_received: Option<u64>,
    /// Of the answer's body.
    pub bytes_sent: Option<u64>,
    /// From the request's first byte to the answer's last.
    pub duration: Option<Duration>,
    /// From its first byte to its last.
    pub request_duration: Option<Duration>,
    /// From the request's first byte to the answer's first from upstream.
    pub response_duration: Option<Duration>,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// The cluster.
    pub cluster: Option<&'a str>,
    /// Attempts so far.
    pub attempts: Option<u32>,
    /// Name of the route.
    pub route: Option<&'a str>,
    /// Of this machine.
    pub hostname: Option<&'a str>,
}

impl Format {
    /// Reads a text. `%%` is a percent sign.
    ///
    /// # Errors
    /// The operator that is not known, or not closed.
    pub fn parse(source: &str) -> Result<Self, FormatError> {
        Ok(Self { source: source.to_owned(), pieces: parse::pieces(source)? })
    }

    /// The text, if there are no operators in it.
    pub fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether it asks for anything of the request's head.
    pub fn reads_request(&self) -> bool {
        self.pieces.iter().any(|piece| {
            matches!(piece, Piece::Value(Operator::Header(Message::Request | Message::RequestPath, ..), _))
        })
    }

    /// The text with what is known; `missing` stands for what is not.
    pub fn write(&self, facts: &Facts<'_>, missing: &str) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Value(operator, limit) => match operator.value(facts) {
                    Some(value) => text.push_str(cut(&value, *limit)),
                    None => text.push_str(missing),
                },
            }
        }
        text
    }

    /// The value, if it is a single operator: what is not known is `None`. Else the text, with `-` for what is not.
    pub fn value<'a>(&self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        match self.pieces.as_slice() {
            [Piece::Value(operator, limit)] => {
                let value = operator.value(facts)?;
                Some(match limit {
                    Some(_) => Cow::Owned(cut(&value, *limit).to_owned()),
                    None => value,
                })
            }
            _ => Some(Cow::Owned(self.write(facts, "-"))),
        }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.literal().unwrap_or(&self.source))
    }
}

fn cut(text: &str, limit: Option<usize>) -> &str {
    let Some(mut end) = limit.filter(|limit| *limit < text.len()) else { return text };
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or(text)
}

impl Operator {
    fn value<'a>(&self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let connection = facts.connection;
        let milliseconds = |d: Option<Duration>| d.map(|d| Cow::Owned(d.as_millis().to_string()));
        let number = |n: Option<u64>| n.map(|n| Cow::Owned(n.to_string()));
        let text = |t: Option<&'a str>| t.filter(|t| !t.is_empty()).map(Cow::Borrowed);
        match self {
            Self::Header(message, name, other) => {
                name.value(*message, facts).or_else(|| other.as_ref()?.value(*message, facts))
            }
            Self::StartTime(fields) => facts.start.map(|start| Cow::Owned(time::write(fields, start))),
            Self::Protocol => text(facts.protocol),
            Self::ResponseCode => number(facts.status.map(u64::from)),
            Self::ResponseCodeDetails => text(facts.details),
            Self::ResponseFlags => text(facts.flags),
            Self::GrpcStatus => number(facts.grpc_status.map(u64::from)),
            Self::BytesReceived => number(facts.bytes_received),
            Self::BytesSent => number(facts.bytes_sent),
            Self::Duration => milliseconds(facts.duration),
            Self::RequestDuration => milliseconds(facts.request_duration),
            Self::ResponseDuration => milliseconds(facts.response_duration),
            Self::ResponseTxDuration => milliseconds(
                facts.duration.zip(facts.response_duration).map(|(all, first)| all.saturating_sub(first)),
            ),
            Self::Upstream(part) => facts.upstream.map(|address| part.of(address)),
            Self::UpstreamCluster => text(facts.cluster),
            Self::Attempts => number(facts.attempts.map(u64::from)),
            Self::Remote(part) => {
                facts.remote.or(connection.map(|c| c.remote)).map(|address| part.of(address))
            }
            Self::DirectRemote(part) => connection.map(|c| part.of(c.direct)),
            Self::Local(part) => connection.map(|c| part.of(c.local)),
            Self::PeerUriSan => text(connection.and_then(|c| c.peer.as_deref())),
            Self::ServerName => text(connection.and_then(|c| c.server_name.as_deref())),
            Self::RouteName => text(facts.route),
            Self::Hostname => text(facts.hostname),
        }
    }
}

impl Part {
    fn of(self, address: SocketAddr) -> Cow<'static, str> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Cow::Owned(match self {
            Self::Whole => address.to_string(),
            Self::Host => address.ip().to_string(),
            Self::Port => address.port().to_string(),
        })
    }
}

impl Name {
    fn value<'a>(&self, message: Message, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let headers = match message {
            Message::Request | Message::RequestPath => facts.request?.headers,
            Message::Response => facts.response?,
            Message::Trailers => facts.trailers?,
        };
        let value = match self {
            Self::Header(name) => {
                let mut all = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
                let first = all.next()?;
                all.fold(first, |joined, next| Cow::Owned(format!("{joined},{next}")))
            }
            Self::Method => Cow::Borrowed(facts.request?.method),
            Self::Path => Cow::Borrowed(facts.request?.path_and_query),
            Self::Authority => Cow::Borrowed(facts.request?.authority),
            Self::Scheme => Cow::Borrowed(facts.request?.scheme),
            Self::Status => Cow::Owned(facts.status?.to_string()),
        };
        if message == Message::RequestPath
            && let Some((path, _)) = value.split_once('?')
        {
            return Some(Cow::Owned(path.to_owned()));
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests;
