//! How far a wait is.

use xds_proto::isthmus::admin::v1::{SilentReplica, WaitProgress, WaitingFor};

/// Data planes named in one line; the rest are counted.
const SHOWN: usize = 5;

/// `acked 7/9, waiting for agent~n2 (at revision 41, 3s), envoy~shop/web (refused: ...)`
pub(crate) fn line(progress: &WaitProgress) -> String {
    let WaitProgress { concerned, acked, .. } = progress;
    let open = concerned.saturating_sub(*acked);
    let planes = list(&progress.waiting_for, open as usize);
    let names: Vec<String> =
        [planes, silent(&progress.silent)].into_iter().filter(|names| !names.is_empty()).collect();
    match progress.state.as_str() {
        _ if !names.is_empty() => format!("acked {acked}/{concerned}, waiting for {}", names.join(", ")),
        "waiting" if *concerned == 0 => "looking for the data planes concerned".to_owned(),
        _ if *concerned == 0 => format!("revision {}: no data plane is concerned", progress.revision),
        _ => format!("acked {acked}/{concerned}"),
    }
}

/// `replica 3 at 10.0.0.3:9443 (connection refused)`
pub(crate) fn silent(replicas: &[SilentReplica]) -> String {
    let name = |replica: &SilentReplica| {
        let why = if replica.error.is_empty() { String::new() } else { format!(" ({})", replica.error) };
        format!("replica {} at {}{why}", replica.id, replica.address)
    };
    replicas.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The ones in a state, with what is known of each; with an empty state: those that have not answered.
pub(crate) fn names(progress: &WaitProgress, state: &str) -> String {
    let wanted = |plane: &&WaitingFor| match state {
        "" => plane.state != "refused",
        state => plane.state == state,
    };
    let planes: Vec<WaitingFor> = progress.waiting_for.iter().filter(wanted).cloned().collect();
    let open = match state {
        "refused" => progress.refused,
        _ => progress.concerned.saturating_sub(progress.acked).saturating_sub(progress.refused),
    };
    list(&planes, open as usize)
}

/// `2 of 9 data planes`
pub(crate) fn planes(count: u32, of: u32) -> String {
    format!("{count} of {of} data plane{}", if of == 1 { "" } else { "s" })
}

fn list(planes: &[WaitingFor], open: usize) -> String {
    let shown: Vec<_> = planes.iter().take(SHOWN).map(name).collect();
    let more = open.saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

fn name(plane: &WaitingFor) -> String {
    let seconds = plane.state_ms / 1000;
    let since = if seconds > 0 { format!(", for {seconds}s") } else { String::new() };
    match plane.state.as_str() {
        "disconnected" if plane.acked_revision == 0 && plane.error.is_empty() => {
            format!("{} (connected nowhere)", plane.id)
        }
        "disconnected" if plane.acked_revision == 0 => {
            format!("{} (connected nowhere, {})", plane.id, plane.error)
        }
        "refused" => format!("{} ({})", plane.id, plane.error),
        "disconnected" => format!("{} (disconnected at revision {}{since})", plane.id, plane.acked_revision),
        _ => format!("{} (at revision {}{since})", plane.id, plane.acked_revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(state: &str, acked: u32, concerned: u32) -> WaitProgress {
        let plane = |i: u32| WaitingFor {
            id: format!("agent~n{i}"),
            state: "pending".into(),
            acked_revision: 40,
            state_ms: 3_100,
            ..Default::default()
        };
        WaitProgress {
            revision: 41,
            state: state.into(),
            concerned,
            acked,
            waiting_for: (acked..concerned).take(20).map(plane).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_line_counts_and_names() {
        assert_eq!(
            line(&progress("waiting", 7, 9)),
            "acked 7/9, waiting for agent~n7 (at revision 40, for 3s), agent~n8 (at revision 40, for 3s)"
        );
        assert!(line(&progress("waiting", 0, 900)).ends_with(" and 895 more"));
        assert_eq!(line(&progress("done", 9, 9)), "acked 9/9");
        assert_eq!(line(&progress("done", 0, 0)), "revision 41: no data plane is concerned");
        assert_eq!(line(&progress("waiting", 0, 0)), "looking for the data planes concerned");
        let silent = vec![SilentReplica { id: 3, address: "10.0.0.3:9443".into(), ..Default::default() }];
        let unheard = WaitProgress { silent, ..progress("waiting", 9, 9) };
        assert_eq!(line(&unheard), "acked 9/9, waiting for replica 3 at 10.0.0.3:9443");
    }

    #[test]
    fn one_is_not_several() {
        assert_eq!(
            (planes(1, 1), planes(1, 2)),
            ("1 of 1 data plane".to_owned(), "1 of 2 data planes".to_owned())
        );
    }
}
