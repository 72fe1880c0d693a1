//! `clustermesh apply`

use serde_json::json;
use xds_proto::isthmus::admin::v1::{ApplyRequest, ApplyResponse, WaitProgress};

use super::{
    args::{ApplyArgs, ApplyOutput},
    client::{REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    manifest::{self, Document},
    object, out, render,
    server::Server,
    wait,
};

pub(crate) async fn run(server: &Server, args: &ApplyArgs) -> Result<(), Failure> {
    let documents = manifest::read(&args.filenames, args.namespace.as_deref())?;
    let mut admin = connect(server).await?;
    let request = ApplyRequest {
        objects: documents.iter().map(|d| d.object.to_string().into_bytes()).collect(),
        dry_run: args.dry_run,
        ..Default::default()
    };
    let spinner = out::spinner("applying");
    let answer = within(REQUEST_TIMEOUT, admin.apply(request)).await;
    spinner.finish_and_clear();
    let answer = answer.map_err(|failure| located(failure, &documents))?;
    if !args.wait || args.dry_run {
        return out::print(&text(&answer, None, args.output, args.dry_run));
    }
    if args.output != ApplyOutput::Json {
        // What is stored is stored, however the wait ends.
        out::print(&text(&answer, None, args.output, args.dry_run))?;
    }
    let waited = wait::follow(&mut admin, answer.wait_revision, args.timeout).await;
    if args.output == ApplyOutput::Json {
        out::print(&text(&answer, waited.as_ref().ok(), args.output, args.dry_run))?;
    }
    wait::failure(&waited?, args.timeout).map_or(Ok(()), Err)
}

/// Replaces the control plane's `objects[3]:` by the file and the document that the user knows.
fn located(failure: Failure, documents: &[Document]) -> Failure {
    let place = failure.sentence.strip_prefix("objects[").and_then(|rest| {
        let (index, said) = rest.split_once(']')?;
        Some((documents.get(index.parse::<usize>().ok()?)?, said))
    });
    match place {
        Some((document, said)) => Failure { sentence: format!("{}{said}", document.place), ..failure },
        None => failure,
    }
}

fn text(answer: &ApplyResponse, waited: Option<&WaitProgress>, output: ApplyOutput, dry_run: bool) -> String {
    match output {
        ApplyOutput::Json => {
            let mut value = json!({
                "revision": answer.revision,
                "dryRun": dry_run,
                "outcomes": answer.outcomes.iter().map(|o| json!({
                    "kind": o.kind, "namespace": o.namespace, "name": o.name, "outcome": o.outcome,
                })).collect::<Vec<_>>(),
            });
            if let Some(waited) = waited {
                value["wait"] = json!({
                    "revision": waited.revision, "state": waited.state, "concerned": waited.concerned,
                    "acked": waited.acked, "refused": waited.refused, "elapsedMs": waited.elapsed_ms,
                    "waitingFor": waited.waiting_for.iter().map(|plane| json!({
                        "id": plane.id, "kind": plane.kind, "replica": plane.replica, "state": plane.state,
                        "ackedRevision": plane.acked_revision, "connectedUnixMs": plane.connected_unix_ms,
                        "stateMs": plane.state_ms, "error": plane.error,
                    })).collect::<Vec<_>>(),
                    "silent": waited.silent.iter().map(|replica| json!({
                        "replica": replica.id, "address": replica.address, "silentMs": replica.silent_ms,
                        "error": replica.error,
                    })).collect::<Vec<_>>(),
                });
            }
            render::json(&value)
        }
        ApplyOutput::Name => {
            answer.outcomes.iter().map(|o| object::reference(&o.kind, &o.name) + "\n").collect()
        }
        ApplyOutput::Text => {
            let suffix = if dry_run { " (dry run)" } else { "" };
            let line = |o: &xds_proto::isthmus::admin::v1::ObjectOutcome| {
                format!("{} {}{suffix}\n", object::reference(&o.kind, &o.name), o.outcome)
            };
            answer.outcomes.iter().map(line).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::admin::v1::{ObjectOutcome, SilentReplica};

    fn answer() -> ApplyResponse {
        let outcome = |kind: &str, name: &str, outcome: &str| ObjectOutcome {
            kind: kind.into(),
            namespace: "shop".into(),
            name: name.into(),
            outcome: outcome.into(),
        };
        ApplyResponse {
            revision: 12,
            outcomes: vec![outcome("Service", "pay", "created"), outcome("HTTPRoute", "pay", "unchanged")],
            waiting_for: Vec::new(),
            wait_revision: 12,
        }
    }

    #[test]
    fn outcomes_read_like_kubectls() {
        assert_eq!(
            text(&answer(), None, ApplyOutput::Text, false),
            "service/pay created\nhttproute/pay unchanged\n"
        );
        assert_eq!(
            text(&answer(), None, ApplyOutput::Text, true),
            "service/pay created (dry run)\nhttproute/pay unchanged (dry run)\n"
        );
        assert_eq!(text(&answer(), None, ApplyOutput::Name, false), "service/pay\nhttproute/pay\n");
        assert!(text(&answer(), None, ApplyOutput::Json, false).contains("\"revision\": 12"));
        let silent = vec![SilentReplica { id: 2, address: "10.0.0.2:9443".into(), ..Default::default() }];
        let waited =
            WaitProgress { state: "timed out".into(), acked: 3, concerned: 3, silent, ..Default::default() };
        let json: serde_json::Value =
            serde_json::from_str(&text(&answer(), Some(&waited), ApplyOutput::Json, false)).unwrap();
        assert_eq!((&json["wait"]["state"], &json["wait"]["acked"]), (&json!("timed out"), &json!(3)));
        assert_eq!(json["wait"]["silent"][0]["address"], json!("10.0.0.2:9443"), "why it took so long");
    }

    #[test]
    fn a_refusal_names_the_file_instead_of_the_index() {
        let document = |place: &str| Document { place: place.to_owned(), object: json!({}) };
        let documents = [document("a.yaml"), document("b.yaml, document 2")];
        let refused = |said: &str| located(Failure::failed(said), &documents).sentence;
        assert_eq!(
            refused("objects[1]: spec.foo: unknown field"),
            "b.yaml, document 2: spec.foo: unknown field"
        );
        assert_eq!(refused("objects[7]: x"), "objects[7]: x");
        assert_eq!(refused("no leader"), "no leader");
    }
}
