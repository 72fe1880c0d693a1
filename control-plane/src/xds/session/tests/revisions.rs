//! Which revision a client is at: what `apply --wait` relies on.

use super::script::*;
use crate::xds::session::TypeStatus;

fn of<'a>(script: &'a Script, type_url: &str) -> TypeStatus<'a> {
    script.session.status().into_iter().find(|status| &**status.type_url == type_url).unwrap()
}

#[test]
fn a_client_whose_view_did_not_change_is_up_to_date_without_an_ack() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a"), (EDS, "a x")]);
        script.open(CDS, "");
        script.open(EDS, "a");
        script.settle();
        script.model(&[(EDS, "a x=2")]);
        assert_eq!(script.sent(), [""; 0]);
        assert_eq!(of(&script, CDS).acked_revision, 2);
        assert_eq!(of(&script, EDS).acked_revision, 2);
    }
}

#[test]
fn a_change_that_concerns_a_client_counts_when_it_is_acked() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.open(EDS, "a");
        script.settle();
        script.model(&[(EDS, "a=2")]);
        assert_eq!(of(&script, EDS).acked_revision, 1);
        script.sent();
        assert_eq!((of(&script, EDS).sent_revision, of(&script, EDS).acked_revision), (2, 1));
        script.ack(EDS);
        assert_eq!(of(&script, EDS).acked_revision, 2);
    }
}

#[test]
fn an_ack_proves_its_own_revision_while_a_newer_one_is_on_its_way() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.open(EDS, "a");
        script.settle();
        script.model(&[(EDS, "a=2")]);
        script.sent();
        script.model(&[(CDS, "unrelated")]);
        script.model(&[(EDS, "a=3")]);
        script.ack(EDS);
        assert_eq!(of(&script, EDS).acked_revision, 3, "revision 3 changed nothing for it");
        script.ack(EDS);
        assert_eq!(of(&script, EDS).acked_revision, 4);
    }
}

#[test]
fn a_nack_settles_a_revision_without_acking_it_and_later_changes_elsewhere_settle_too() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a b")]);
        script.open(EDS, "a b");
        script.settle();
        script.model(&[(EDS, "a=bad b")]);
        script.sent();
        script.nack(EDS);
        assert_eq!((of(&script, EDS).settled_revision, of(&script, EDS).acked_revision), (2, 1));
        script.model(&[(EDS, "a=bad b=2")]);
        script.sent();
        script.settle();
        let status = of(&script, EDS);
        assert_eq!((status.settled_revision, status.acked_revision), (3, 1));
        assert_eq!(status.nacked.unwrap().revision, 2);
        script.model(&[(EDS, "a=2 b=2")]);
        script.sent();
        script.settle();
        assert_eq!(of(&script, EDS).acked_revision, 4);
    }
}

#[test]
fn a_removal_counts_when_it_is_acked() {
    let mut script = Script::new(crate::xds::session::Protocol::Delta, &[(CDS, "a b"), (RDS, "r")]);
    script.open(CDS, "");
    script.open(RDS, "r");
    script.settle();
    script.model(&[(CDS, "a"), (RDS, "r=2")]);
    assert_eq!(script.sent(), ["RDS +r=2"]);
    assert_eq!(script.ack(RDS), ["CDS -b"]);
    assert_eq!(of(&script, CDS).acked_revision, 1);
    script.ack(CDS);
    assert_eq!(of(&script, CDS).acked_revision, 2);
}
