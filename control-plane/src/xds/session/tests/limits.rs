//! What ends a stream.

use super::script::*;
use crate::xds::session::{Limits, Protocol, Session, SessionError};

fn session(limits: Limits) -> Session {
    Script::limited(Protocol::Delta, &[], limits).session
}

#[test]
fn names_are_limited_over_all_types_of_a_stream() {
    for protocol in BOTH {
        let limits = Limits { names: 3, ..Default::default() };
        let mut script = Script::limited(protocol, &[], limits);
        script.open(EDS, "a b");
        let request = match protocol {
            Protocol::Sotw => sotw(RDS, "c d", ""),
            Protocol::Delta => delta(RDS, "c d", ""),
        };
        assert_eq!(script.session.on_request(request), Err(SessionError::TooManyNames { limit: 3 }));
    }
}

#[test]
fn a_name_and_a_type_url_are_limited_in_length() {
    let mut session = session(Limits { name_bytes: 64, ..Default::default() });
    let long = "x".repeat(65);
    let error = session.on_request(delta("t", &long, "")).unwrap_err();
    assert_eq!(error, SessionError::NameTooLong { type_url: "t".into(), bytes: 65, limit: 64 });
    assert!(session.on_request(delta(&long, "", "")).is_err());
}

#[test]
fn types_are_limited() {
    let mut session = session(Limits { types: 2, ..Default::default() });
    session.on_request(delta("a", "", "")).unwrap();
    session.on_request(delta("b", "", "")).unwrap();
    session.on_request(delta("a", "", "")).unwrap();
    assert_eq!(session.on_request(delta("c", "", "")), Err(SessionError::TooManyTypes { limit: 2 }));
}

#[test]
fn initial_versions_are_limited() {
    let mut session = session(Limits { initial_versions: 1, ..Default::default() });
    let error = session.on_request(reconnect(EDS, "a", "a b")).unwrap_err();
    assert_eq!(error, SessionError::TooManyVersions { type_url: EDS.into(), count: 2, limit: 1 });
}

#[test]
fn a_request_without_a_type_is_refused() {
    assert_eq!(session(Limits::default()).on_request(delta("", "a", "")), Err(SessionError::NoType));
}
