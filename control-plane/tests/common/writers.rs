//! Writers that never stop, and what they were promised.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::process::apply;

/// What was acknowledged, and when the last acknowledgement came.
#[derive(Default)]
pub struct Written {
    pub revisions: BTreeMap<String, u64>,
    pub last: Option<Instant>,
    pub longest_gap: Duration,
}

impl Written {
    /// The longest time without an acknowledgement since this was asked last.
    pub fn take_gap(&mut self) -> Duration {
        self.last = None;
        std::mem::take(&mut self.longest_gap)
    }
}

/// Writes until told to stop, to whichever replica takes it.
pub async fn write(
    n: usize,
    sockets: Arc<RwLock<Vec<PathBuf>>>,
    written: Arc<Mutex<Written>>,
    stop: Arc<AtomicBool>,
) {
    let (mut count, mut before, mut turn) = (0, 0, n);
    while !stop.load(Ordering::Relaxed) {
        let socket = {
            let sockets = sockets.read().unwrap();
            sockets[turn % sockets.len()].clone()
        };
        let name = format!("w{n}-{count}");
        // What failed may have taken effect: its name is not used again, and nothing is claimed of it.
        count += 1;
        let Ok(Ok(revision)) = tokio::time::timeout(Duration::from_secs(12), apply(&socket, &name)).await
        else {
            turn += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        assert!(revision > before, "writer {n}: revision {revision} after {before}");
        before = revision;
        let mut written = written.lock().unwrap();
        let now = Instant::now();
        if let Some(last) = written.last.replace(now) {
            written.longest_gap = written.longest_gap.max(now - last);
        }
        written.revisions.insert(name, revision);
    }
}
