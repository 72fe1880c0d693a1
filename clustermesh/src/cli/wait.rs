//! Waiting for data planes, with progress: for `apply --wait` and `delete --wait`.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use xds_proto::isthmus::admin::v1::{WaitProgress, WaitRequest};

use super::{
    client::{Admin, REQUEST_TIMEOUT, within},
    failure::Failure,
    out, render,
};

/// The control plane ends the wait; this is for its last message to arrive.
const GRACE: Duration = Duration::from_secs(10);
/// Between two plain lines, so that a log does not consist of them.
const PACE: Duration = Duration::from_secs(2);

/// Returns the last message, once every data plane has answered or the time is over.
pub(crate) async fn follow(
    admin: &mut Admin,
    revision: u64,
    timeout: Duration,
) -> Result<WaitProgress, Failure> {
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let request = WaitRequest { revision, timeout_ms };
    let mut stream = within(REQUEST_TIMEOUT, admin.wait(request)).await?;
    let mut shown = Shown::new();
    let listening = async {
        let mut last = None;
        while let Some(progress) = stream.message().await? {
            shown.update(&progress);
            last = Some(progress);
        }
        last.ok_or_else(|| Failure::unreachable("the control plane ended the wait without a word"))
    };
    let last = tokio::time::timeout(timeout + GRACE, listening).await;
    shown.end();
    match last {
        Ok(last) => last,
        Err(_) => Err(Failure::timed_out(format!(
            "revision {revision} is stored, but the control plane did not say within {timeout:?} who has it; \
             see 'clustermesh status'"
        ))),
    }
}

/// How a wait that did not end well ends the command.
pub(crate) fn failure(last: &WaitProgress, timeout: Duration) -> Option<Failure> {
    let revision = last.revision;
    match last.state.as_str() {
        "done" => None,
        "refused" => Some(Failure::refused(format!(
            "revision {revision} is stored, but {} refused it: {}; they run on what they had",
            render::wait::planes(last.refused, last.concerned),
            render::wait::names(last, "refused")
        ))),
        _ => {
            let missing = last.concerned.saturating_sub(last.acked).saturating_sub(last.refused);
            let mut what = Vec::new();
            if missing > 0 || (last.silent.is_empty() && last.refused == 0) {
                let (planes, names) =
                    (render::wait::planes(missing, last.concerned), render::wait::names(last, ""));
                what.push(format!("{planes} did not acknowledge it: {names}"));
            }
            if !last.silent.is_empty() {
                let silent = render::wait::silent(&last.silent);
                what.push(format!("{silent} did not answer, so that it is not known who else lacks it"));
            }
            if last.refused > 0 {
                what.push(format!("{} refused it: {}", last.refused, render::wait::names(last, "refused")));
            }
            let sentence = format!(
                "revision {revision} is stored, but within {timeout:?} {}; see 'clustermesh status'",
                what.join(", and ")
            );
            Some(if last.refused > 0 { Failure::refused(sentence) } else { Failure::timed_out(sentence) })
        }
    }
}

/// A bar on a terminal, lines elsewhere; both on stderr.
enum Shown {
    Bar(ProgressBar),
    Lines { last: String, at: Option<Instant> },
}

impl Shown {
    fn new() -> Self {
        if !out::stderr_is_terminal() {
            return Self::Lines { last: String::new(), at: None };
        }
        let style = ProgressStyle::with_template("{spinner} [{bar:24}] {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::new(0).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Bar(bar)
    }

    fn update(&mut self, progress: &WaitProgress) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(u64::from(progress.concerned));
                bar.set_position(u64::from(progress.acked));
                bar.set_message(render::wait::line(progress));
            }
            Self::Lines { last, at } => {
                let over = progress.state != "waiting";
                let line = render::wait::line(progress);
                let early = at.is_some_and(|at| at.elapsed() < PACE) && !over;
                if early || line == *last || (progress.concerned == 0 && progress.silent.is_empty() && !over)
                {
                    return;
                }
                out::remark(&line);
                (*last, *at) = (line, Some(Instant::now()));
            }
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
            let message = bar.message();
            if !message.is_empty() {
                out::remark(&message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::admin::v1::{SilentReplica, WaitingFor};

    fn last(state: &str, states: &[(&str, &str)]) -> WaitProgress {
        let of = |wanted: &str| states.iter().filter(|(_, state)| *state == wanted).count() as u32;
        WaitProgress {
            revision: 12,
            state: state.into(),
            concerned: 9,
            acked: 9 - states.len() as u32,
            refused: of("refused"),
            waiting_for: states
                .iter()
                .map(|(id, state)| WaitingFor {
                    id: (*id).into(),
                    state: (*state).into(),
                    acked_revision: 11,
                    error: if *state == "refused" {
                        "Listener in: no such filter".into()
                    } else {
                        String::new()
                    },
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_wait_that_ends_too_early_names_who_is_missing() {
        let end = last("timed out", &[("agent~n1", "pending"), ("proxy~shop/pay", "disconnected")]);
        let failure = failure(&end, Duration::from_secs(30)).unwrap();
        assert_eq!(failure.code, 4);
        assert_eq!(
            failure.sentence,
            "revision 12 is stored, but within 30s 2 of 9 data planes did not acknowledge it: agent~n1 (at revision \
             11), proxy~shop/pay (disconnected at revision 11); see 'clustermesh status'"
        );
    }

    #[test]
    fn a_refusal_is_told_in_the_clients_words_and_has_its_own_code() {
        let refused =
            failure(&last("refused", &[("envoy~shop/web", "refused")]), Duration::from_secs(1)).unwrap();
        assert_eq!(refused.code, 6);
        assert_eq!(
            refused.sentence,
            "revision 12 is stored, but 1 of 9 data planes refused it: envoy~shop/web (Listener in: no such \
             filter); they run on what they had"
        );
        let both = last("timed out", &[("envoy~shop/web", "refused"), ("agent~n1", "pending")]);
        let both = failure(&both, Duration::from_secs(1)).unwrap();
        assert!(
            both.code == 6 && both.sentence.contains("agent~n1 (at revision 11), and 1 refused it"),
            "{both:?}"
        );
        assert_eq!(failure(&last("done", &[]), Duration::from_secs(1)), None);
    }

    #[test]
    fn a_replica_that_did_not_answer_is_named_and_is_no_success() {
        let silent = SilentReplica {
            id: 3,
            address: "10.0.0.3:9443".into(),
            silent_ms: 30_000,
            error: "connection refused".into(),
        };
        let mut end = WaitProgress { silent: vec![silent], ..last("timed out", &[]) };
        let alone = failure(&end, Duration::from_secs(30)).unwrap();
        assert_eq!(
            (alone.code, alone.sentence.as_str()),
            (
                4,
                "revision 12 is stored, but within 30s replica 3 at 10.0.0.3:9443 (connection refused) did not \
                 answer, so that it is not known who else lacks it; see 'clustermesh status'"
            )
        );
        end.silent[0].error.clear();
        end.waiting_for = last("timed out", &[("agent~n1", "disconnected")]).waiting_for;
        (end.acked, end.waiting_for[0].acked_revision) = (8, 0);
        end.waiting_for[0].error = "unless it is connected to replica 3, which does not answer".into();
        assert_eq!(
            failure(&end, Duration::from_secs(30)).unwrap().sentence,
            "revision 12 is stored, but within 30s 1 of 9 data planes did not acknowledge it: agent~n1 (connected \
             nowhere, unless it is connected to replica 3, which does not answer), and replica 3 at 10.0.0.3:9443 \
             did not answer, so that it is not known who else lacks it; see 'clustermesh status'"
        );
    }
}
