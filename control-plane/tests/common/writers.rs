//! Clients that never stop, and what they were told: writers at whichever replica takes it, a reader at each.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{
    history::{Recorder, Seen},
    process::{PATIENCE, apply_register, registers},
};

/// A write waits 10 s for a leader before it is refused.
const ANSWER: Duration = Duration::from_secs(12);

/// What was acknowledged, and when the last acknowledgement came.
#[derive(Default)]
pub struct Written {
    pub revisions: BTreeMap<String, u64>,
    /// What was not, and why.
    pub failures: Vec<String>,
    /// Attempts that have ended, by writer.
    ended: BTreeMap<usize, usize>,
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Written {
    /// The longest time without an acknowledgement since this was asked last.
    pub fn take_gap(&mut self) -> Duration {
        self.last = None;
        std::mem::take(&mut self.longest_gap)
    }
}

/// All of them together.
#[derive(Default)]
pub struct Clients {
    /// Where it is written to.
    pub sockets: RwLock<Vec<PathBuf>>,
    pub written: Mutex<Written>,
    pub recorder: Recorder,
    stop: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Clients {
    pub fn writing(self: &Arc<Self>, writers: usize) {
        let tasks = (0..writers).map(|n| tokio::spawn(self.clone().write(n)));
        self.tasks.lock().unwrap().extend(tasks);
    }

    /// One more reader, that asks one replica only.
    pub fn reading(self: &Arc<Self>, client: usize, socket: PathBuf) {
        self.tasks.lock().unwrap().push(tokio::spawn(self.clone().read(client, socket)));
    }

    pub fn count(&self) -> usize {
        self.written.lock().unwrap().revisions.len()
    }

    /// So many more are acknowledged.
    pub async fn going_on(&self, more: usize) {
        let enough = self.count() + more;
        self.until(|written| written.revisions.len() >= enough).await;
    }

    /// Nobody writes by way of this replica any more, nor waits for its answer.
    pub async fn forsake(&self, socket: &PathBuf) {
        self.sockets.write().unwrap().retain(|other| other != socket);
        let before = self.written.lock().unwrap().ended.clone();
        self.until(|written| before.iter().all(|(writer, ended)| written.ended[writer] > *ended)).await;
    }

    async fn until(&self, holds: impl Fn(&Written) -> bool) {
        let waiting = async {
            while !holds(&self.written.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("writes go on");
    }

    /// Ends all of them.
    pub async fn stop(&self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            task.await.unwrap();
        }
        self.written.lock().unwrap().revisions.clone()
    }

    async fn write(self: Arc<Self>, n: usize) {
        let register = format!("w{n}");
        let (mut count, mut turn) = (0u64, n);
        while !self.stop.load(Ordering::Relaxed) {
            let socket = {
                let sockets = self.sockets.read().unwrap();
                sockets[turn % sockets.len()].clone()
            };
            let name = format!("w{n}-{count}");
            let number = self.recorder.begins(&register, count);
            let answer = tokio::time::timeout(ANSWER, apply_register(&socket, &name, &register, count)).await;
            // What failed may have taken effect: its name is not used again, and nothing is claimed of it.
            count += 1;
            let answer = answer.map_err(|_| "no answer in time".to_owned());
            let answer = answer.and_then(|answer| answer.map_err(|status| status.to_string()));
            if let Ok(revision) = &answer {
                self.recorder.acknowledged(number, *revision);
            }
            let failed = {
                let mut written = self.written.lock().unwrap();
                *written.ended.entry(n).or_default() += 1;
                match answer {
                    Ok(revision) => {
                        let now = Instant::now();
                        if let Some(last) = written.last.replace(now) {
                            written.longest_gap = written.longest_gap.max(now - last);
                        }
                        written.revisions.insert(name, revision);
                        false
                    }
                    Err(reason) => {
                        written.failures.push(format!("{name} at {}: {reason}", socket.display()));
                        true
                    }
                }
            };
            if failed {
                turn += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn read(self: Arc<Self>, client: usize, socket: PathBuf) {
        while !self.stop.load(Ordering::Relaxed) {
            let called = self.recorder.now();
            let answer = tokio::time::timeout(ANSWER, registers(&socket)).await;
            let Ok(Ok((revision, registers))) = answer else {
                // It is down, or was removed.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let seen =
                registers.into_iter().map(|(name, (value, revision))| (name, Seen { value, revision }));
            self.recorder.read(client, called, revision, seen.collect());
        }
    }
}
