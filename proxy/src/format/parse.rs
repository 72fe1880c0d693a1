//! From text to pieces.

use thiserror::Error;

use super::{Message, Name, Operator, Part, Piece, time};

/// Why a text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// There is no such operator here.
    #[error("has %{0}%, which this proxy does not know")]
    Unknown(String),
    /// A `%` without an end.
    #[error("has a '%' that is not closed; a percent sign is written '%%'")]
    Open,
    /// An operator without what it needs.
    #[error("has %{0}%, whose argument is missing or malformed")]
    Argument(String),
}

pub(super) fn pieces(source: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let end = closing(after).ok_or(FormatError::Open)?;
        let (word, after) = after.split_at(end);
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(operator(word)?);
        rest = after.strip_prefix('%').unwrap_or(after);
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

/// The `%` that ends an operator: the first one outside of brackets.
fn closing(text: &str) -> Option<usize> {
    let mut within = false;
    text.bytes().position(|byte| {
        match byte {
            b'(' => within = true,
            b')' => within = false,
            b'%' => return !within,
            _ => {}
        }
        false
    })
}

fn operator(word: &str) -> Result<Piece, FormatError> {
    let short = || word.chars().take(100).collect::<String>();
    let malformed = || FormatError::Argument(short());
    let (head, limit) = match word.rsplit_once(':') {
        Some((head, digits)) if head.ends_with(')') || !head.contains('(') => {
            (head, Some(digits.parse().map_err(|_| malformed())?))
        }
        _ => (word, None),
    };
    let (name, argument) = match head.split_once('(') {
        Some((name, rest)) => (name, Some(rest.strip_suffix(')').ok_or_else(malformed)?)),
        None => (head, None),
    };
    let header = |message| {
        let argument = argument.filter(|a| !a.is_empty()).ok_or_else(malformed)?;
        let (main, other) = match argument.split_once('?') {
            Some((main, other)) => (main, Some(other)),
            None => (argument, None),
        };
        let named = |text: &str| self::name(text, message).ok_or_else(malformed);
        Ok(Operator::Header(message, named(main)?, other.map(named).transpose()?))
    };
    let operator = match name {
        "REQ" => header(Message::Request)?,
        "REQ_WITHOUT_QUERY" => header(Message::RequestPath)?,
        "RESP" => header(Message::Response)?,
        "TRAILER" => header(Message::Trailers)?,
        "START_TIME" => Operator::StartTime(time::parse(argument.unwrap_or_default()).ok_or_else(malformed)?),
        _ if argument.is_some() => return Err(FormatError::Unknown(short())),
        "REQUEST_SCHEME" => Operator::Header(Message::Request, Name::Scheme, None),
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "REQUEST_DURATION" => Operator::RequestDuration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Operator::Upstream(Part::Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Upstream(Part::Host),
        "UPSTREAM_REMOTE_PORT" => Operator::Upstream(Part::Port),
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::Attempts,
        "DOWNSTREAM_REMOTE_ADDRESS" => Operator::Remote(Part::Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Remote(Part::Host),
        "DOWNSTREAM_REMOTE_PORT" => Operator::Remote(Part::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::DirectRemote(Part::Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DirectRemote(Part::Host),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::DirectRemote(Part::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::Local(Part::Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::Local(Part::Host),
        "DOWNSTREAM_LOCAL_PORT" => Operator::Local(Part::Port),
        "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
        "REQUESTED_SERVER_NAME" => Operator::ServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "HOSTNAME" => Operator::Hostname,
        _ => return Err(FormatError::Unknown(short())),
    };
    Ok(Piece::Value(operator, limit))
}

fn name(text: &str, message: Message) -> Option<Name> {
    let request = matches!(message, Message::Request | Message::RequestPath);
    let lower = text.to_ascii_lowercase();
    Some(match lower.as_str() {
        ":method" if request => Name::Method,
        ":path" if request => Name::Path,
        ":authority" | "host" if request => Name::Authority,
        ":scheme" if request => Name::Scheme,
        ":status" if message == Message::Response => Name::Status,
        _ => Name::Header(lower.parse().ok()?),
    })
}
