//! Requests of an xDS client through a session, with views that change under it.
//!
//! The first byte chooses the protocol. Then come steps: a byte that says which, and for a request two bytes of length
//! and as many of protobuf.

use std::{collections::BTreeMap, sync::Arc};

use control_plane::xds::{
    Encoded, ResourceSet, Session,
    session::{Interest, Limits, Protocol, Refusal, Request},
};
use xds_proto::{
    Message,
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
};

const LIMITS: Limits =
    Limits { names: 64, name_bytes: 256, types: 8, initial_versions: 64, response_bytes: 1_024 };
/// Steps of one input.
const STEPS: usize = 256;
/// Responses between two steps: one in flight for each type, and no more until it is answered.
const RESPONSES: usize = 8;

pub(crate) fn xds(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let protocol = if first & 1 == 0 { Protocol::Sotw } else { Protocol::Delta };
    let views = [view(&[]), view(&["a", "b"]), view(&["b", "c"])];
    let mut revision = 1;
    let mut session = Session::new(protocol, 1, LIMITS, views[1].clone(), revision);
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut last: Option<(String, String)> = None;
    for _ in 0..STEPS {
        let Some((step, tail)) = rest.split_first() else { return };
        rest = tail;
        match step % 4 {
            0 => {
                let Some((message, tail)) = message(rest) else { return };
                rest = tail;
                let Some(request) = decoded(protocol, message) else { continue };
                if let Interest::Exactly(wanted) = &request.interest {
                    names.insert(request.type_url.clone(), wanted.clone());
                }
                if session.on_request(request).is_err() {
                    return;
                }
            }
            1 | 2 => {
                let Some((type_url, nonce)) = last.take() else { continue };
                let wanted = names.get(&type_url).cloned().unwrap_or_default();
                let request = answer(protocol, type_url, nonce, wanted, step % 4 == 2);
                session.on_request(request).expect("an answer goes beyond no limit");
            }
            _ => {
                revision += 1;
                session.on_snapshot(views[usize::from(*step >> 2) % views.len()].clone(), revision);
            }
        }
        let mut count = 0;
        while let Some(response) = session.next_response() {
            count += 1;
            assert!(count <= RESPONSES, "responses without end");
            last = Some((response.type_url.to_string(), response.nonce));
        }
        let _ = session.status();
    }
}

/// Two bytes of length, and the bytes.
fn message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn decoded(protocol: Protocol, bytes: &[u8]) -> Option<Request> {
    match protocol {
        Protocol::Sotw => DiscoveryRequest::decode(bytes).ok().map(Into::into),
        Protocol::Delta => DeltaDiscoveryRequest::decode(bytes).ok().map(Into::into),
    }
}

fn answer(
    protocol: Protocol,
    type_url: String,
    nonce: String,
    wanted: Vec<String>,
    refused: bool,
) -> Request {
    Request {
        type_url,
        interest: match protocol {
            Protocol::Sotw => Interest::Exactly(wanted),
            Protocol::Delta => Interest::Change { subscribe: Vec::new(), unsubscribe: Vec::new() },
        },
        nonce,
        error: refused.then(|| Refusal { code: 13, message: "no".to_owned() }),
        initial_versions: BTreeMap::new(),
    }
}

/// A listener with its route, and a cluster with its endpoints, for each name.
fn view(names: &[&str]) -> Arc<ResourceSet> {
    let mut set = ResourceSet::new(1);
    for name in names {
        let named = || (*name).to_owned();
        set.insert(Encoded::new(named(), &Listener { name: named(), ..Default::default() }));
        set.insert(Encoded::new(named(), &RouteConfiguration { name: named(), ..Default::default() }));
        set.insert(Encoded::new(
            named(),
            &Cluster {
                name: named(),
                cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
                ..Default::default()
            },
        ));
        let endpoints = ClusterLoadAssignment { cluster_name: named(), ..Default::default() };
        set.insert(Encoded::new(named(), &endpoints));
    }
    Arc::new(set)
}
