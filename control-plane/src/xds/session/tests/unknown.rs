//! Types that nobody serves.

use super::script::*;
use crate::xds::session::{Event, Protocol};

const FOREIGN: &str = "type.googleapis.com/example.v1.Thing";

#[test]
fn a_type_that_nobody_serves_is_answered_by_a_status_once_and_ends_nothing() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a")]);
        let request = match protocol {
            Protocol::Sotw => sotw(FOREIGN, "x", ""),
            Protocol::Delta => delta(FOREIGN, "x", ""),
        };
        let events = script.session.on_request(request.clone()).unwrap();
        assert_eq!(events, [Event::UnknownType { type_url: FOREIGN.into() }]);
        assert_eq!(script.sent(), ["Thing -x !x"]);
        assert_eq!(script.settle(), [""; 0]);
        assert_eq!(script.session.on_request(request).unwrap(), []);
        assert_eq!(script.open(CDS, "")[0], "CDS +a=1", "other types are served");
    }
}

#[test]
fn a_wildcard_of_a_type_that_nobody_serves_is_answered_by_a_status_for_all() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[]);
        assert_eq!(script.open(FOREIGN, "*"), ["Thing !*"]);
        assert_eq!(script.settle(), [""; 0]);
        let mut script = Script::new(protocol, &[]);
        assert_eq!(script.open(FOREIGN, ""), ["Thing !*"]);
        assert_eq!(script.settle(), [""; 0]);
    }
}

#[test]
fn the_status_goes_over_the_wire_as_resource_errors() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[]);
        let request = match protocol {
            Protocol::Sotw => sotw(FOREIGN, "x", ""),
            Protocol::Delta => delta(FOREIGN, "x", ""),
        };
        script.session.on_request(request).unwrap();
        let response = script.responses().remove(0);
        let errors = match protocol {
            Protocol::Sotw => response.into_sotw("west-1").resource_errors,
            Protocol::Delta => response.into_delta("west-1").resource_errors,
        };
        assert_eq!(errors[0].resource_name.as_ref().unwrap().name, "x");
        let status = errors[0].error_detail.as_ref().unwrap();
        assert_eq!(status.code, 12);
        assert_eq!(status.message, format!("this control plane does not serve {FOREIGN}"));
    }
}
