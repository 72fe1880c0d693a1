//! The replicas of a cluster, for `replica list` and as a part of `status`.

use serde_json::{Value, json};
use xds_proto::isthmus::admin::v1::{ReplicaStatus, StatusResponse};

use super::table::{Cell, Table};
use crate::cli::out::{Paint, Tone};

/// `-o table`; None if there are no replicas.
pub(crate) fn table(replicas: &[ReplicaStatus]) -> Option<Table> {
    let mut table = Table::new(["ID", "ADDRESS", "ROLE", "STATE", "LOG", "LAG", "APPLIED"]);
    for r in replicas {
        let state = match (r.leaving, r.reachable) {
            (true, _) => Cell::toned("leaving", Tone::Warning),
            (false, true) => Cell::toned("reachable", Tone::Plain),
            (false, false) => Cell::toned("unreachable", Tone::Bad),
        };
        let lag = match (r.lag_known, r.lag) {
            (false, _) => "unknown".into(),
            (true, 0) => "0".into(),
            (true, lag) => Cell::toned(lag.to_string(), Tone::Warning),
        };
        table.row(vec![
            r.id.to_string().into(),
            r.address.as_str().into(),
            Cell::toned(&*r.role, if r.role == "leader" { Tone::Good } else { Tone::Plain }),
            state,
            number(r.matched),
            lag,
            number(r.applied),
        ]);
    }
    (!replicas.is_empty()).then_some(table)
}

/// 0 is what nobody could say.
fn number(index: u64) -> Cell {
    if index == 0 { "unknown".into() } else { index.to_string().into() }
}

/// What stands above everything else while no majority answers.
pub(crate) fn warning(s: &StatusResponse, paint: Paint) -> String {
    let Some(lost) = &s.no_quorum else { return String::new() };
    let text = format!(
        "{}\nWhat follows is what replica {} knew last; it may be out of date.\n\n",
        paint.paint(Tone::Bad, &lost.sentence),
        s.answered_by
    );
    text
}

/// A remark on the number of voters, if there is one to make.
pub(crate) fn remark(replicas: &[ReplicaStatus]) -> Option<String> {
    let voters = replicas.iter().filter(|r| r.voter).count();
    let survived = voters.saturating_sub(1) / 2;
    match voters {
        0 | 1 => None,
        2 => Some("2 voters need both: add a third, or remove one".to_owned()),
        even if even % 2 == 0 => {
            Some(format!("{even} voters survive the loss of {survived}, as {} would", even - 1))
        }
        _ => None,
    }
}

/// `-o json` and `-o yaml`
pub(crate) fn values(replicas: &[ReplicaStatus]) -> Vec<Value> {
    let known = |known: bool, value: u64| if known { json!(value) } else { Value::Null };
    let one = |r: &ReplicaStatus| {
        json!({
            "id": r.id, "address": r.address, "role": r.role, "voter": r.voter,
            "reachable": r.reachable, "leaving": r.leaving,
            "matched": known(r.matched > 0, r.matched), "lag": known(r.lag_known, r.lag),
            "applied": known(r.applied > 0, r.applied), "revision": known(r.applied > 0, r.revision),
            "version": r.version,
        })
    };
    replicas.iter().map(one).collect()
}

/// Null while a majority answers.
pub(crate) fn no_quorum(s: &StatusResponse) -> Value {
    s.no_quorum.as_ref().map_or(Value::Null, |lost| {
        json!({
            "reachable": lost.reachable, "voters": lost.voters, "sinceUnixMs": lost.since_unix_ms,
            "sentence": lost.sentence,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::admin::v1::NoQuorum;

    fn replica(id: u64, role: &str) -> ReplicaStatus {
        ReplicaStatus {
            id,
            address: format!("192.0.2.{id}:9443"),
            role: role.to_owned(),
            reachable: true,
            voter: role != "learner",
            matched: 42,
            lag_known: true,
            applied: 41,
            ..Default::default()
        }
    }

    #[test]
    fn each_replica_has_a_row_and_what_nobody_knows_is_said_so() {
        let lost = ReplicaStatus {
            reachable: false,
            matched: 0,
            lag_known: false,
            applied: 0,
            ..replica(2, "follower")
        };
        let all = [replica(1, "leader"), lost, ReplicaStatus { lag: 7, ..replica(3, "learner") }];
        assert_eq!(
            table(&all).unwrap().render(true, Paint::PLAIN),
            "ID   ADDRESS          ROLE       STATE         LOG       LAG       APPLIED\n\
             1    192.0.2.1:9443   leader     reachable     42        0         41\n\
             2    192.0.2.2:9443   follower   unreachable   unknown   unknown   unknown\n\
             3    192.0.2.3:9443   learner    reachable     42        7         41\n"
        );
        assert_eq!(values(&all)[1]["lag"], Value::Null);
        assert_eq!(values(&all)[2]["lag"], 7);
    }

    #[test]
    fn an_even_number_of_voters_is_remarked_upon() {
        let voters = |n: u64| (1..=n).map(|id| replica(id, "follower")).collect::<Vec<_>>();
        assert_eq!(remark(&voters(3)), None);
        assert_eq!(remark(&voters(4)).unwrap(), "4 voters survive the loss of 1, as 3 would");
        assert!(remark(&voters(2)).unwrap().contains("need both"));
        assert_eq!(remark(&voters(1)), None);
    }

    #[test]
    fn a_lost_quorum_stands_above_everything_else() {
        let lost =
            NoQuorum { reachable: 1, voters: 3, since_unix_ms: 9, sentence: "no quorum: 1 of 3".into() };
        let status = StatusResponse { answered_by: 2, no_quorum: Some(lost), ..Default::default() };
        let text = warning(&status, Paint::PLAIN);
        assert!(text.starts_with("no quorum: 1 of 3\n") && text.contains("replica 2 knew last"), "{text}");
        assert_eq!(no_quorum(&status)["voters"], 3);
        assert_eq!(warning(&StatusResponse::default(), Paint::PLAIN), "");
    }
}
