//! What only SotW has: the full state.

use super::script::*;
use crate::xds::session::Protocol;

#[test]
fn every_cluster_response_carries_every_cluster() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a b")]);
    assert_eq!(script.want(CDS, "", ""), ["CDS +a=1 +b=1"]);
    script.settle();
    script.model(&[(CDS, "a=2 b c")]);
    assert_eq!(script.sent(), ["CDS +a=2 +b=1 +c=1"]);
}

#[test]
fn a_removed_cluster_stays_in_the_full_state_until_listeners_and_routes_have_settled() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "old"), (LDS, "l"), (RDS, "l")]);
    script.want(CDS, "", "");
    script.settle();
    script.want(LDS, "", "");
    script.want(RDS, "l", "");
    script.settle();
    script.model(&[(CDS, "new"), (RDS, "l=2")]);
    assert_eq!(script.sent(), ["CDS +new=1 +old=1"]);
    assert_eq!(script.ack(CDS), ["RDS +l=2"]);
    assert_eq!(script.ack(RDS), ["CDS +new=1 -old"]);
    assert_eq!(script.ack(CDS), [""; 0]);
}

#[test]
fn a_removed_listener_is_gone_at_once_and_makes_room_for_another_on_its_port() {
    let mut script = Script::new(Protocol::Sotw, &[(LDS, "a b")]);
    script.want(LDS, "", "");
    script.settle();
    script.model(&[(LDS, "a c")]);
    assert_eq!(script.sent(), ["LDS +a=1 +c=1 -b"]);
}

#[test]
fn a_new_stream_gets_everything_whatever_version_it_says_it_has() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a")]);
    assert_eq!(script.want(CDS, "", "nonce-of-another-stream"), ["CDS +a=1"]);
}

#[test]
fn an_answer_is_framed_with_the_revision_as_its_version_and_without_removals() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a")]);
    script.session.on_request(sotw(CDS, "a ghost", "")).unwrap();
    let response = script.responses().remove(0).into_sotw("west-1");
    assert_eq!(response.version_info, "1");
    assert_eq!(response.type_url, CDS);
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.resources[0].type_url, CDS);
    assert_eq!(response.control_plane.unwrap().identifier, "west-1");
    assert!(!response.nonce.is_empty());
}

#[test]
fn a_delta_answer_is_framed_with_names_versions_and_removals() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a")]);
    script.session.on_request(delta(EDS, "a ghost", "")).unwrap();
    let response = script.responses().remove(0).into_delta("west-1");
    assert_eq!(response.system_version_info, "1");
    assert_eq!(response.resources[0].name, "a");
    assert_eq!(response.resources[0].version, version(EDS, "a=1") + "@1", "with the revision");
    assert_eq!(response.removed_resources, ["ghost"]);
}
