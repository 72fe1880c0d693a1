//! `clustermesh get --watch`: every change, across lost connections and lost leaders.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;
use tonic::{Code, Status};
use xds_proto::isthmus::admin::v1::{WatchEvent, WatchRequest};

use super::{
    args::{GetArgs, GetOutput},
    client::{REQUEST_TIMEOUT, connect},
    failure::{Failure, NO_QUORUM, UNREACHABLE},
    get::{self, Found},
    kinds::Target,
    object,
    out::{self, Tone},
    render::{columns, table::Table},
    server::Server,
};

/// Between attempts, doubled each time.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A control plane that does not answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one connection came to.
enum End {
    /// Worth another attempt, for this reason.
    Again(String),
    /// What came since the revision that was seen is forgotten.
    Compacted,
}

/// Prints changes until it is interrupted, or the control plane is gone for good.
pub(crate) async fn follow(
    server: &Server,
    target: &Target,
    found: &Found,
    args: &GetArgs,
) -> Result<(), Failure> {
    let mut watch = Watch::new(target, found, args);
    let mut delay = FIRST_DELAY;
    let mut lost: Option<Instant> = None;
    loop {
        let before = watch.seen;
        let reason = match watch.once(server).await? {
            End::Compacted => {
                out::remark(&format!(
                    "(what came after revision {} is forgotten: listing again)",
                    watch.seen
                ));
                match watch.list_again(server).await {
                    Ok(()) => None,
                    Err(failure) if matches!(failure.code, UNREACHABLE | NO_QUORUM) => Some(failure.sentence),
                    Err(failure) => return Err(failure),
                }
            }
            End::Again(reason) => Some(reason),
        };
        if watch.seen > before || reason.is_none() {
            (delay, lost) = (FIRST_DELAY, None);
        }
        let Some(reason) = reason else { continue };
        let since = *lost.get_or_insert_with(|| {
            out::remark(&format!("({reason}: trying again from revision {})", watch.seen));
            Instant::now()
        });
        if since.elapsed() > PATIENCE {
            return Err(Failure::unreachable(format!("{reason}; given up after {} s", PATIENCE.as_secs())));
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

struct Watch<'a> {
    target: &'a Target,
    args: &'a GetArgs,
    /// Up to here everything was printed.
    seen: u64,
    /// Objects that were printed, by namespace and name.
    known: BTreeMap<(String, String), Value>,
    table: Table,
    headings_due: bool,
}

impl<'a> Watch<'a> {
    fn new(target: &'a Target, found: &Found, args: &'a GetArgs) -> Self {
        let mut table = columns::table(target.kind, get::style(args, false));
        for o in &found.objects {
            table.row(columns::row(target.kind, o, get::style(args, false)));
        }
        let as_table = matches!(args.output, GetOutput::Table | GetOutput::Wide);
        Self {
            target,
            args,
            seen: found.revision,
            known: found.objects.iter().map(|o| (key(o), o.clone())).collect(),
            table,
            headings_due: as_table && found.objects.is_empty() && !args.no_headers,
        }
    }

    /// One connection, to its end.
    async fn once(&mut self, server: &Server) -> Result<End, Failure> {
        let mut admin = match connect(server).await {
            Ok(admin) => admin,
            Err(failure) => return Ok(End::Again(failure.sentence)),
        };
        let request = WatchRequest {
            kind: self.target.kind.as_str().to_owned(),
            namespace: self.args.scope.wire(),
            name: self.target.name.clone().unwrap_or_default(),
            from_revision: self.seen,
            label_selector: self.args.selector.clone(),
            bookmarks: true,
        };
        let mut events = match tokio::time::timeout(REQUEST_TIMEOUT, admin.watch(request)).await {
            Ok(Ok(events)) => events.into_inner(),
            Ok(Err(status)) => return end(status),
            Err(_) => return Ok(End::Again("the control plane does not answer".to_owned())),
        };
        loop {
            match events.message().await {
                Ok(Some(event)) => self.take(event)?,
                Ok(None) => return Ok(End::Again("the control plane ended the watch".to_owned())),
                Err(status) => return end(status),
            }
        }
    }

    fn take(&mut self, event: WatchEvent) -> Result<(), Failure> {
        if event.r#type != "BOOKMARK" {
            let o = object::parse(&event.object)?;
            let gone = event.r#type == "DELETED";
            match gone {
                true => drop(self.known.remove(&key(&o))),
                false => drop(self.known.insert(key(&o), o.clone())),
            }
            self.print(&o, gone)?;
        }
        self.seen = self.seen.max(event.revision);
        Ok(())
    }

    /// Prints how what is there now differs from what was printed.
    async fn list_again(&mut self, server: &Server) -> Result<(), Failure> {
        let mut admin = connect(server).await?;
        let target = std::slice::from_ref(self.target);
        let found = get::list(&mut admin, target, &self.args.scope.wire(), &self.args.selector).await?;
        let now: BTreeMap<_, _> = found.objects.into_iter().map(|o| (key(&o), o)).collect();
        let before = std::mem::take(&mut self.known);
        for (o, gone) in differences(&before, &now) {
            self.print(o, gone)?;
        }
        self.known = now;
        self.seen = found.revision;
        Ok(())
    }

    fn print(&mut self, o: &Value, gone: bool) -> Result<(), Failure> {
        match self.args.output {
            GetOutput::Table | GetOutput::Wide => {
                let style = get::style(self.args, false);
                if std::mem::take(&mut self.headings_due) {
                    // The first row decides the widths.
                    out::print(&columns::render(self.target.kind, std::slice::from_ref(o), style))?;
                    self.table.row(columns::row(self.target.kind, o, style));
                    return Ok(());
                }
                let row = self.table.later(columns::row(self.target.kind, o, style), style.paint);
                let gone = if gone { "   (deleted)" } else { "" };
                out::line(&format!("{}{}", row.trim_end(), style.paint.paint(Tone::Faint, gone)))
            }
            GetOutput::Name => out::line(&object::reference(object::kind(o), object::name(o))),
            GetOutput::Json | GetOutput::Yaml => get::whole(o, self.args),
        }
    }
}

/// Objects that are new, different or (true) gone.
fn differences<'a>(
    before: &'a BTreeMap<(String, String), Value>,
    now: &'a BTreeMap<(String, String), Value>,
) -> Vec<(&'a Value, bool)> {
    let changed = now.iter().filter(|(key, o)| before.get(*key) != Some(*o)).map(|(_, o)| (o, false));
    let gone = before.iter().filter(|(key, _)| !now.contains_key(*key)).map(|(_, o)| (o, true));
    changed.chain(gone).collect()
}

fn key(o: &Value) -> (String, String) {
    (object::namespace(o).to_owned(), object::name(o).to_owned())
}

/// Whether the end of a watch is the end of it all.
fn end(status: Status) -> Result<End, Failure> {
    let code = status.code();
    let failure = Failure::from(status);
    match code {
        Code::OutOfRange => Ok(End::Compacted),
        // Read too slowly, or too many at once: said, and tried again.
        Code::ResourceExhausted => Ok(End::Again(failure.sentence)),
        _ if matches!(failure.code, UNREACHABLE | NO_QUORUM) => Ok(End::Again(failure.sentence)),
        _ => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn after_a_second_list_only_what_differs_is_told() {
        let o =
            |name: &str, port: u16| json!({"metadata": {"name": name, "namespace": "shop"}, "spec": port});
        let map = |all: &[Value]| all.iter().map(|o| (key(o), o.clone())).collect::<BTreeMap<_, _>>();
        let before = map(&[o("a", 1), o("b", 1), o("c", 1)]);
        let now = map(&[o("a", 1), o("b", 2), o("d", 1)]);
        let told: Vec<_> =
            differences(&before, &now).into_iter().map(|(o, gone)| (object::name(o), gone)).collect();
        assert_eq!(told, [("b", false), ("d", false), ("c", true)]);
    }

    #[test]
    fn a_lost_leader_is_waited_for_and_a_refusal_is_not() {
        assert!(matches!(end(Status::unavailable("no leader")), Ok(End::Again(_))));
        assert!(matches!(end(Status::unavailable("no quorum: 1 of 3")), Ok(End::Again(_))));
        assert!(matches!(end(Status::unknown("transport error")), Ok(End::Again(_))));
        assert!(matches!(end(Status::resource_exhausted("watch-backlog")), Ok(End::Again(_))));
        assert!(matches!(end(Status::out_of_range("revision 3 is compacted")), Ok(End::Compacted)));
        assert_eq!(end(Status::permission_denied("not you")).err().map(|f| f.code), Some(1));
    }
}
