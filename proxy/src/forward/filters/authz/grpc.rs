//! The service as `envoy.service.auth.v3.Authorization`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use xds_proto::{
    envoy::{
        config::core::v3::{
            Address, HeaderMap as WireHeaders, HeaderValue as WireHeader, HeaderValueOption, Metadata,
            SocketAddress, address, socket_address,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::{HttpRequest, Peer, Request, TlsSession},
            authorization_client::AuthorizationClient,
            check_response::HttpResponse,
        },
    },
    google::protobuf::Timestamp,
};

use super::{
    Decision, Denial, Exchange, PARTIAL, Permit, Shown,
    ask::{clean, header as checked, is_shown, joined},
};
use crate::{
    forward::filters::{service, values},
    policy::{GrpcTarget, authz::ExtAuthz},
    route::OnExisting,
};

pub(super) async fn decide(
    exchange: &Exchange<'_>,
    authz: &ExtAuthz,
    target: &GrpcTarget,
    context: Option<&BTreeMap<String, String>>,
    shown: &Shown,
    as_bytes: bool,
) -> Decision {
    let request = CheckRequest { attributes: Some(attributes(exchange, authz, context, shown, as_bytes)) };
    let answer = service::ask(exchange, target, request, |channel, request, origin, max| async move {
        let client = AuthorizationClient::with_origin(channel, origin);
        client.max_decoding_message_size(max).check(request).await
    });
    match answer.await {
        Ok(answer) => understood(answer).unwrap_or_else(Decision::Error),
        Err(error) => Decision::Error(error.to_string()),
    }
}

fn peer(at: SocketAddr, principal: Option<&str>) -> Peer {
    let socket = SocketAddress {
        address: at.ip().to_canonical().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
        ..SocketAddress::default()
    };
    Peer {
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        principal: principal.unwrap_or_default().to_owned(),
        ..Peer::default()
    }
}

fn attributes(
    exchange: &Exchange<'_>,
    authz: &ExtAuthz,
    context: Option<&BTreeMap<String, String>>,
    shown: &Shown,
    as_bytes: bool,
) -> AttributeContext {
    let connection = &exchange.client.connection;
    let mut source = peer(exchange.remote(), connection.peer.as_deref());
    if authz.include_peer_certificate
        && let Some(der) = &exchange.client.peer_certificate
    {
        source.certificate = percent_encoded(&mesh_tls::pem::certificate(der));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
    };
    let known = |name: &String| Some((name.clone(), values::to_struct(exchange.metadata.namespace(name)?)));
    let tls = connection.server_name.clone().filter(|_| authz.include_tls_session);
    AttributeContext {
        source: Some(source),
        destination: Some(peer(connection.local, None)),
        request: Some(Request { time: Some(time), http: Some(http(exchange, authz, shown, as_bytes)) }),
        context_extensions: context
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        metadata_context: Some(Metadata {
            filter_metadata: authz.metadata_namespaces.iter().filter_map(known).collect(),
            ..Metadata::default()
        }),
        tls_session: tls.map(|sni| TlsSession { sni }),
        ..AttributeContext::default()
    }
}

fn http(exchange: &Exchange<'_>, authz: &ExtAuthz, shown: &Shown, as_bytes: bool) -> HttpRequest {
    let head = &exchange.request.head;
    let pseudo = [
        (":authority", head.authority.as_str()),
        (":method", head.method.as_str()),
        (":path", head.path.as_str()),
        (":scheme", head.scheme),
    ];
    let mut headers: Vec<(String, Vec<u8>)> = pseudo
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .chain(head.headers.keys().map(|name| (name.to_string(), joined(&head.headers, name))))
        .filter(|(name, _)| is_shown(authz, name))
        .collect();
    if let Some(partial) = shown.partial {
        headers.push((PARTIAL.to_string(), partial.to_string().into_bytes()));
    }
    let mut request = HttpRequest {
        id: exchange.client.connection.remote.port().to_string(),
        method: head.method.to_string(),
        path: head.path.to_string(),
        host: head.authority.to_string(),
        scheme: head.scheme.to_owned(),
        // What has been received of it by now.
        size: i64::try_from(shown.body.len()).unwrap_or(i64::MAX),
        protocol: if exchange.request.http2_client { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        ..HttpRequest::default()
    };
    if authz.raw_headers {
        let raw = |(key, raw_value)| WireHeader { key, raw_value, ..WireHeader::default() };
        request.header_map = Some(WireHeaders { headers: headers.into_iter().map(raw).collect() });
    } else {
        request.headers = headers.into_iter().map(|(name, value)| (name, clean(&value))).collect();
    }
    if as_bytes {
        request.raw_body = shown.body.to_vec();
    } else {
        request.body = clean(&shown.body);
    }
    request
}

/// What is no letter, digit, or one of `-_.~` goes as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn understood(answer: CheckResponse) -> Result<Decision, String> {
    let CheckResponse { status, dynamic_metadata, http_response } = answer;
    let metadata = dynamic_metadata.map(values::from_struct).unwrap_or_default();
    let ok = status.is_some_and(|status| status.code == 0);
    match http_response {
        Some(HttpResponse::ErrorResponse(_)) => Err("the service says that it cannot decide".to_owned()),
        Some(HttpResponse::OkResponse(response)) if ok => {
            permit(response).map(|permit| Decision::Permit(Permit { metadata, ..permit }))
        }
        None if ok => Ok(Decision::Permit(Permit { metadata, ..Permit::default() })),
        // A refusal in the place of a permission, and the other way round.
        Some(HttpResponse::DeniedResponse(_)) if ok => {
            Err("status and answer say different things".to_owned())
        }
        Some(HttpResponse::DeniedResponse(response)) => {
            denial(response).map(|denial| Decision::Deny(Denial { metadata, ..denial }))
        }
        Some(HttpResponse::OkResponse(_)) | None => {
            Ok(Decision::Deny(Denial { status: 403, headers: vec![], body: bytes::Bytes::new(), metadata }))
        }
    }
}

type Wanted = (::http::HeaderName, ::http::HeaderValue, OnExisting);

#[allow(deprecated)]
fn wanted(wire: HeaderValueOption) -> Result<Wanted, String> {
    let HeaderValueOption { header, append, append_action, keep_empty_value: _ } = wire;
    let WireHeader { key, value, raw_value } = header.ok_or("a header has no name")?;
    let bytes = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
    let (name, value) = checked(&key, &bytes)?;
    let on_existing = match (append.map(|append| append.value), append_action) {
        (Some(true), _) => OnExisting::Append,
        // Unlike everywhere else it is not the default to add.
        (_, 0 | 2) | (Some(false), _) => OnExisting::Overwrite,
        (None, 1) => OnExisting::Keep,
        (None, 3) => OnExisting::OverwriteOnly,
        (None, other) => return Err(format!("append_action {other} is unknown")),
    };
    Ok((name, value, on_existing))
}

fn for_client(
    wires: Vec<HeaderValueOption>,
) -> Result<Vec<(::http::HeaderName, ::http::HeaderValue, bool)>, String> {
    let each = wires.into_iter().map(wanted);
    each.map(|wanted| wanted.map(|(name, value, how)| (name, value, how == OnExisting::Append))).collect()
}

#[allow(deprecated)]
fn permit(response: OkHttpResponse) -> Result<Permit, String> {
    let OkHttpResponse {
        headers,
        headers_to_remove,
        dynamic_metadata: _,
        response_headers_to_add,
        query_parameters_to_set,
        query_parameters_to_remove,
    } = response;
    Ok(Permit {
        set: headers.into_iter().map(wanted).collect::<Result<_, _>>()?,
        remove: headers_to_remove
            .iter()
            // Those that frame the message stay, whatever it says.
            .filter_map(|name| checked(name, b"").ok().map(|(name, _)| name))
            .collect(),
        client: for_client(response_headers_to_add)?,
        query_set: query_parameters_to_set.into_iter().map(|one| (one.key, one.value)).collect(),
        query_remove: query_parameters_to_remove,
        metadata: Default::default(),
    })
}

fn denial(response: DeniedHttpResponse) -> Result<Denial, String> {
    let DeniedHttpResponse { status, headers, body } = response;
    let code = status.map_or(403, |status| status.code);
    let status = u16::try_from(code).ok().filter(|code| (200..600).contains(code));
    Ok(Denial {
        status: status.ok_or_else(|| format!("{code} is no HTTP status"))?,
        // As in Envoy: what is to be added to nothing is left out.
        headers: for_client(headers)?.into_iter().filter(|(_, _, append)| !append).collect(),
        body: body.into(),
        metadata: Default::default(),
    })
}
