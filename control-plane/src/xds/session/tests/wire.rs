//! Messages as clients really send them: what they leave out, and what they put in that is to be disregarded.

use xds_proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc,
};

use super::script::*;
use crate::xds::session::{Event, Protocol, Request};

fn first(protocol: Protocol, type_url: &str, name: &str) -> Request {
    let (type_url, names) = (type_url.to_owned(), vec![name.to_owned()]);
    match protocol {
        Protocol::Sotw => DiscoveryRequest { type_url, resource_names: names, ..Default::default() }.into(),
        Protocol::Delta => {
            DeltaDiscoveryRequest { type_url, resource_names_subscribe: names, ..Default::default() }.into()
        }
    }
}

fn answered(protocol: Protocol, nonce: &str, version: &str, error: Option<rpc::Status>) -> Request {
    let (type_url, response_nonce) = (EDS.to_owned(), nonce.to_owned());
    match protocol {
        Protocol::Sotw => DiscoveryRequest {
            type_url,
            response_nonce,
            resource_names: vec!["a".to_owned()],
            version_info: version.to_owned(),
            error_detail: error,
            ..Default::default()
        }
        .into(),
        Protocol::Delta => {
            DeltaDiscoveryRequest { type_url, response_nonce, error_detail: error, ..Default::default() }
                .into()
        }
    }
}

#[test]
fn a_refusal_with_an_advanced_version_is_a_refusal() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.say(first(protocol, EDS, "a"));
        // gRPC keeps what was good of a response, says so by the version, and refuses the rest.
        let nonce = script.nonce(EDS);
        let error = Some(rpc::Status { code: 14, message: "bad".into(), details: vec![] });
        let events = script.session.on_request(answered(protocol, &nonce, "1", error)).unwrap();
        assert!(matches!(&events[..], [Event::Nacked { .. }]), "{events:?}");
        assert_eq!(script.sent(), [""; 0]);
        assert_eq!(script.session.status()[0].acked_revision, 0);
    }
}

#[test]
fn a_response_of_an_unchanged_version_is_told_from_the_one_before_by_its_nonce() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.say(first(protocol, EDS, "a"));
        let nonce = script.nonce(EDS);
        script.say(answered(protocol, &nonce, "1", None));
        // The same revision is sent again, because it is asked for again.
        match protocol {
            Protocol::Sotw => {
                script.want(EDS, "", &nonce);
                script.want(EDS, "a", &nonce);
            }
            Protocol::Delta => drop(script.subscribe(EDS, "a")),
        }
        let again = script.nonce(EDS);
        assert_ne!(again, nonce);
        let stale = script.session.on_request(answered(protocol, &nonce, "1", None)).unwrap();
        assert_eq!(stale, [Event::StaleNonce { type_url: EDS.into() }]);
        let acked = script.session.on_request(answered(protocol, &again, "1", None)).unwrap();
        assert_eq!(acked, [Event::Acked { type_url: EDS.into(), revision: 1 }]);
    }
}

#[test]
fn a_subscription_that_grows_with_an_empty_nonce_is_served_in_both_protocols() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a b")]);
        script.open(EDS, "a");
        let names = if protocol == Protocol::Sotw { "a b" } else { "b" };
        assert_eq!(script.open(EDS, names), [""; 0], "one response is in flight");
        assert_eq!(script.ack(EDS), ["EDS +b=1"]);
        assert_eq!(script.settle(), [""; 0]);
    }
}

#[test]
fn structured_names_are_names() {
    use xds_proto::envoy::service::discovery::v3::ResourceLocator;
    let locator = || vec![ResourceLocator { name: "a".into(), ..Default::default() }];
    let requests: [Request; 2] = [
        DiscoveryRequest { type_url: EDS.into(), resource_locators: locator(), ..Default::default() }.into(),
        DeltaDiscoveryRequest {
            type_url: EDS.into(),
            resource_locators_subscribe: locator(),
            ..Default::default()
        }
        .into(),
    ];
    for (protocol, request) in BOTH.into_iter().zip(requests) {
        assert_eq!(Script::new(protocol, &[(EDS, "a")]).say(request), ["EDS +a=1"]);
    }
}
