//! `Watch`: what is there first, then every change.
//!
//! A watcher has a bounded number of events to be behind. One that does not read them in time is cut, with the revision
//! from which it can go on; it never costs more memory than that, and nobody else anything.

pub mod watcher;

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc::error::TrySendError, time::timeout};
use tonic::Status;
use xds_proto::isthmus::admin::v1::WatchEvent;

use self::watcher::Watcher;
use super::{
    compiled,
    objects::Filter,
    outlet::{Answers, Outlet, Over, stopping},
};
use crate::{
    app::App,
    doors::limits::{LimitReached, Slot},
    xds::Views,
};

/// Statuses that may have changed are looked at so often at most.
const REFRESH: Duration = Duration::from_millis(250);
/// A watcher that was told nothing for so long is told the revision, so that it can go on from there later.
const BOOKMARK: Duration = Duration::from_secs(10);
/// How long a watcher may take to read what is there: 100 MB at 800 kB/s. All of it is held meanwhile.
pub const FIRST_LIST: Duration = Duration::from_secs(120);

/// How a watcher is watched over.
#[derive(Debug)]
pub struct Options {
    /// Zero: what is there comes first.
    pub from_revision: u64,
    /// Bookmarks are wanted.
    pub bookmarks: bool,
    /// Held as long as the watch is open.
    pub slots: [Slot; 2],
    /// Who watches.
    pub who: String,
}

/// Starts a watch.
///
/// # Errors
/// `OUT_OF_RANGE` if the revision is compacted.
pub async fn watch(app: Arc<App>, filter: Filter, options: Options) -> Result<Answers<WatchEvent>, Status> {
    let (outlet, stream) = Outlet::new(app.gate.limits.watch_backlog, &app.stop);
    let seen = options.from_revision;
    compiled(&app, app.replica.applied().revision.max(seen)).await;
    // Whoever has seen something goes on from there, or is told that it can't.
    if seen > 0 {
        app.replica.events_after(seen).map_err(|compacted| Status::out_of_range(compacted.to_string()))?;
    }
    tokio::spawn(async move {
        let mut feed = Feed { watcher: Watcher::new(filter), outlet, revision: seen, app, options };
        if let Err(Some(status)) = feed.run().await {
            feed.outlet.end(status);
        }
    });
    Ok(stream)
}

struct Feed {
    watcher: Watcher,
    outlet: Outlet<WatchEvent>,
    /// Up to here everything was told.
    revision: u64,
    app: Arc<App>,
    options: Options,
}

/// None: nobody listens any more, or the outlet knows why.
type End = Option<Status>;

impl Feed {
    async fn run(&mut self) -> Result<(), End> {
        let app = self.app.clone();
        let mut changes = app.views.changed();
        let state = app.replica.applied();
        let first = self.watcher.start(self.options.from_revision, &state, app.views.model().as_deref());
        self.revision = self.revision.max(state.revision);
        drop(state);
        // What is there may be more than a watcher may be behind: it is waited for, but not for ever.
        let reading = async {
            for event in first {
                self.outlet.send(event).await?;
            }
            Ok::<_, Over>(())
        };
        match timeout(FIRST_LIST, reading).await {
            Ok(read) => read.map_err(|Over| None)?,
            Err(_) => return Err(Some(unread())),
        }
        loop {
            // Marked as seen before it is read, so that no change falls between the two.
            changes.borrow_and_update();
            self.advance()?;
            let dirty = self.watcher.is_dirty();
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| Some(stopping()))?,
                () = tokio::time::sleep(REFRESH), if dirty => self.refresh()?,
                () = tokio::time::sleep(BOOKMARK), if self.options.bookmarks && !dirty => self.bookmark()?,
                () = self.outlet.over() => return Err(None),
            }
        }
    }

    fn advance(&mut self) -> Result<(), End> {
        let events = self
            .app
            .replica
            .events_after(self.revision)
            .map_err(|compacted| Some(Status::out_of_range(compacted.to_string())))?;
        if events.is_empty() {
            return Ok(());
        }
        let (state, model) = (self.app.replica.applied(), self.app.views.model());
        for event in events {
            if let Some(told) = self.watcher.on_event(&event, &state, model.as_deref()) {
                self.tell(told)?;
            }
            self.revision = event.revision;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), End> {
        let (state, model) = (self.app.replica.applied(), self.app.views.model());
        for told in self.watcher.refresh(&state, model.as_deref()) {
            self.tell(told)?;
        }
        Ok(())
    }

    fn bookmark(&self) -> Result<(), End> {
        let revision = self.revision;
        self.tell(WatchEvent { r#type: "BOOKMARK".to_owned(), object: Vec::new(), revision })
    }

    fn tell(&self, event: WatchEvent) -> Result<(), End> {
        match self.outlet.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(None),
            Err(TrySendError::Full(event)) => {
                let reached = self.app.gate.count(LimitReached {
                    name: "watch-backlog",
                    value: self.app.gate.limits.watch_backlog,
                    unit: "unread events",
                    who: self.options.who.clone(),
                    next: "read faster, or watch less",
                });
                let from = event.revision.saturating_sub(1);
                tracing::warn!(who = %self.options.who, revision = event.revision, "cut a watch that is not read");
                Err(Some(Status::resource_exhausted(format!("{reached}: watch again from revision {from}"))))
            }
        }
    }
}

fn unread() -> Status {
    let seconds = FIRST_LIST.as_secs();
    Status::deadline_exceeded(format!(
        "what is there was not read within {seconds} s: read faster, or watch less"
    ))
}
