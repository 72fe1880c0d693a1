//! Arbitrary bytes as the life of a stream: what a client may say, in any order, while the model changes.
//!
//! For fuzzers and for tests. What must hold is that nothing panics, that memory is bounded by the limits, and that the
//! session falls silent when nobody says anything: it never talks to itself.

use std::{sync::Arc, time::Duration};

use xds_proto::{
    Message,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::protobuf::Any,
};

use super::{Limits, Protocol, RESOURCE_IN_SOTW, Request, Session};
use crate::xds::{Encoded, ResourceSet, kinds};

/// Responses in a row without a word from the client. There are at most one for each type, and one heartbeat of each.
const MAX_IN_A_ROW: usize = 256;
const TYPES: [&str; 6] =
    [kinds::CLUSTER, kinds::ENDPOINT, kinds::LISTENER, kinds::ROUTE, kinds::VIRTUAL_HOST, kinds::SECRET];

/// Plays the bytes. The first one chooses the protocol. Then come steps: two bytes `kind` and `length`, and so many
/// bytes of contents. Kind 0: a request as protobuf. 1: the same, with the nonce of the last response of its type in the
/// place of its own. 2: the model changes, each byte one resource. 3: time passes. Other kinds: as 0.
///
/// # Panics
/// If the session talks to itself, which is a bug.
pub fn play(data: &[u8]) {
    let Some((first, mut data)) = data.split_first() else { return };
    let protocol = if first & 1 == 0 { Protocol::Sotw } else { Protocol::Delta };
    let features = (first & 2 != 0).then_some(RESOURCE_IN_SOTW);
    let limits = Limits { names: 64, name_bytes: 128, types: 8, initial_versions: 64, response_bytes: 512 };
    let mut set = ResourceSet::new(1);
    let mut session = Session::new(protocol, 1, limits, Arc::new(set.clone()), 1).for_features(features);
    let mut nonces: Vec<(Arc<str>, String)> = Vec::new();
    let mut now = Duration::ZERO;
    while let [kind, length, rest @ ..] = data {
        let (contents, after) = rest.split_at(usize::from(*length).min(rest.len()));
        data = after;
        match kind {
            2 => {
                contents.iter().for_each(|byte| change(&mut set, *byte));
                set.revision += 1;
                session.on_snapshot(Arc::new(set.clone()), set.revision);
            }
            3 => {
                now += Duration::from_secs(contents.iter().map(|byte| u64::from(*byte)).sum());
                session.on_time(now);
                session.reopened();
            }
            _ => {
                let Some(mut request) = decode(protocol, contents) else { continue };
                if *kind == 1
                    && let Some((_, nonce)) = nonces.iter().find(|(of, _)| **of == *request.type_url)
                {
                    request.nonce.clone_from(nonce);
                }
                // The stream ends, with a status.
                if session.on_request(request).is_err() {
                    return;
                }
            }
        }
        let mut sent = 0;
        while let Some(response) = session.next_response() {
            sent += 1;
            assert!(sent <= MAX_IN_A_ROW, "the session talks to itself");
            nonces.retain(|(of, _)| *of != response.type_url);
            nonces.push((response.type_url.clone(), response.nonce.clone()));
            match protocol {
                Protocol::Sotw => drop(response.into_sotw("fuzz")),
                Protocol::Delta => drop(response.into_delta("fuzz")),
            }
        }
        session.inspect(|inspection| drop(inspection.version));
        let _ = (session.status(), session.next_deadline());
    }
}

fn decode(protocol: Protocol, bytes: &[u8]) -> Option<Request> {
    match protocol {
        Protocol::Sotw => DiscoveryRequest::decode(bytes).ok().map(Into::into),
        Protocol::Delta => DeltaDiscoveryRequest::decode(bytes).ok().map(Into::into),
    }
}

/// One bit says whether the resource is there, one whether it lives for a time, one whether it is to be had by name only.
fn change(set: &mut ResourceSet, byte: u8) {
    let type_url = TYPES[usize::from(byte & 7) % TYPES.len()];
    let name = format!("r/{}", (byte >> 3) & 3);
    if byte & 32 == 0 {
        set.remove(type_url, &name);
        return;
    }
    let resource = Encoded::from_any(name, Any { type_url: type_url.to_owned(), value: vec![byte >> 6] });
    let resource = if byte & 64 == 0 { resource } else { resource.with_ttl(Duration::from_secs(30)) };
    if byte & 128 == 0 { set.insert(resource) } else { set.insert_named(resource) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(kind: u8, protocol: Protocol, of: usize, names: &[u8], gone: &[u8], bad: bool) -> Vec<u8> {
        let name = |byte: &u8| if *byte > 6 { "*".to_owned() } else { format!("r/{byte}") };
        let (type_url, names, gone) =
            (TYPES[of].to_owned(), names.iter().map(name).collect(), gone.iter().map(name).collect());
        let error_detail = bad.then(Default::default);
        let bytes = match protocol {
            Protocol::Sotw => {
                DiscoveryRequest { type_url, resource_names: names, error_detail, ..Default::default() }
                    .encode_to_vec()
            }
            Protocol::Delta => DeltaDiscoveryRequest {
                type_url,
                resource_names_subscribe: names,
                resource_names_unsubscribe: gone,
                error_detail,
                ..Default::default()
            }
            .encode_to_vec(),
        };
        [&[kind, u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_a_client_says_makes_a_session_panic_or_talk_to_itself(
            first in 0..4u8,
            steps in prop::collection::vec(
                (
                    0..4u8,
                    0..TYPES.len(),
                    prop::collection::vec(0..8u8, 0..4),
                    prop::collection::vec(0..8u8, 0..2),
                    any::<bool>(),
                    prop::collection::vec(any::<u8>(), 0..6),
                ),
                0..40,
            ),
        ) {
            let protocol = if first & 1 == 0 { Protocol::Sotw } else { Protocol::Delta };
            let mut data = vec![first];
            for (kind, of, names, gone, bad, bytes) in steps {
                match kind {
                    0 | 1 => data.extend(request(kind, protocol, of, &names, &gone, bad)),
                    _ => data.extend([&[kind, bytes.len() as u8], bytes.as_slice()].concat()),
                }
            }
            play(&data);
        }

        #[test]
        fn no_bytes_make_a_session_panic(data in prop::collection::vec(any::<u8>(), 0..512)) {
            play(&data);
        }
    }
}
