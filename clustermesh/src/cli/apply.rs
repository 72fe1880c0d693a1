//! `clustermesh apply`

use std::{path::Path, time::Duration};

use serde_json::json;
use xds_proto::isthmus::admin::v1::{ApplyRequest, ApplyResponse};

use super::{
    args::{ApplyArgs, ApplyOutput},
    client::{REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    manifest::{self, Document},
    object, out, render,
};

/// Data planes named when a wait ends too early; the rest are counted.
const SHOWN: usize = 5;
/// The control plane ends the wait; this is for its answer to arrive.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn run(socket: &Path, args: &ApplyArgs) -> Result<(), Failure> {
    let documents = manifest::read(&args.filenames, args.namespace.as_deref())?;
    let mut admin = connect(socket).await?;
    let request = ApplyRequest {
        objects: documents.iter().map(|d| d.object.to_string().into_bytes()).collect(),
        wait: args.wait && !args.dry_run,
        wait_timeout_ms: u32::try_from(args.timeout.as_millis()).unwrap_or(u32::MAX),
        dry_run: args.dry_run,
    };
    let limit = if request.wait { args.timeout + GRACE } else { REQUEST_TIMEOUT };
    let doing = if request.wait { "waiting for the data planes" } else { "applying" };
    let spinner = out::spinner(doing);
    let answer = within(limit, admin.apply(request)).await;
    spinner.finish_and_clear();
    let answer = answer.map_err(|failure| located(failure, &documents))?;
    out::print(&text(&answer, args.output, args.dry_run))?;
    still_waiting(&answer, args.timeout).map_or(Ok(()), Err)
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

fn text(answer: &ApplyResponse, output: ApplyOutput, dry_run: bool) -> String {
    match output {
        ApplyOutput::Json => render::json(&json!({
            "revision": answer.revision,
            "dryRun": dry_run,
            "outcomes": answer.outcomes.iter().map(|o| json!({
                "kind": o.kind, "namespace": o.namespace, "name": o.name, "outcome": o.outcome,
            })).collect::<Vec<_>>(),
            "waitingFor": answer.waiting_for,
        })),
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

fn still_waiting(answer: &ApplyResponse, timeout: Duration) -> Option<Failure> {
    if answer.waiting_for.is_empty() {
        return None;
    }
    let mut names = answer.waiting_for.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if answer.waiting_for.len() > SHOWN {
        names.push_str(", ...");
    }
    Some(Failure::timed_out(format!(
        "revision {} is stored, but within {:?} {} of the data planes did not acknowledge it ({names}); \
         see 'clustermesh status'",
        answer.revision,
        timeout,
        answer.waiting_for.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::admin::v1::ObjectOutcome;

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
            waiting_for: vec!["agent~n1".into(), "proxy~shop/pay".into()],
        }
    }

    #[test]
    fn outcomes_read_like_kubectls() {
        assert_eq!(
            text(&answer(), ApplyOutput::Text, false),
            "service/pay created\nhttproute/pay unchanged\n"
        );
        assert_eq!(
            text(&answer(), ApplyOutput::Text, true),
            "service/pay created (dry run)\nhttproute/pay unchanged (dry run)\n"
        );
        assert_eq!(text(&answer(), ApplyOutput::Name, false), "service/pay\nhttproute/pay\n");
        assert!(text(&answer(), ApplyOutput::Json, false).contains("\"revision\": 12"));
    }

    #[test]
    fn a_wait_that_ends_too_early_names_who_is_missing() {
        let failure = still_waiting(&answer(), Duration::from_secs(30)).unwrap();
        assert_eq!(failure.code, 4);
        assert_eq!(
            failure.sentence,
            "revision 12 is stored, but within 30s 2 of the data planes did not acknowledge it \
             (agent~n1, proxy~shop/pay); see 'clustermesh status'"
        );
        assert_eq!(still_waiting(&ApplyResponse::default(), Duration::from_secs(1)), None);
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
