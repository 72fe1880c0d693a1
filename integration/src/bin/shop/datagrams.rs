//! The client for datagrams: each has a number, and is waited for by that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{net::UdpSocket, time::timeout};

#[derive(clap::Args)]
pub(crate) struct Datagrams {
    /// Where to send them.
    #[arg(long)]
    to: SocketAddr,
    /// How many, at most.
    #[arg(short = 'n', long, default_value_t = 1)]
    number: u64,
    /// Goes on until this file exists.
    #[arg(long)]
    until: Option<PathBuf>,
    /// Writes there how many were answered so far.
    #[arg(long)]
    progress: Option<PathBuf>,
    /// Pause between two.
    #[arg(long, default_value_t = 2)]
    pause_ms: u64,
    /// The last ones are waited for as long.
    #[arg(long, default_value_t = 1500)]
    grace_ms: u64,
    /// Bytes of each; 8 at least.
    #[arg(long, default_value_t = 8)]
    bytes: usize,
}

/// What became of them.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    sent: u64,
    answered: u64,
    /// Sent and not answered: the first 100 numbers.
    missing: Vec<u64>,
    /// Answered more than once.
    twice: u64,
    /// By text.
    errors: BTreeMap<String, u64>,
    /// By the answering application's name.
    names: BTreeMap<String, u64>,
}

impl Datagrams {
    pub(crate) async fn run(self) -> anyhow::Result<Report> {
        let any: SocketAddr = if self.to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.to).await?;
        let (mut report, mut open) = (Report::default(), BTreeSet::new());
        let padding = vec![0; self.bytes.saturating_sub(8)];
        while report.sent < self.number && self.until.as_ref().is_none_or(|file| !file.exists()) {
            let number = report.sent;
            report.sent += 1;
            open.insert(number);
            if let Err(error) = socket.send(&[&number.to_be_bytes()[..], &padding].concat()).await {
                *report.errors.entry(error.to_string()).or_default() += 1;
            }
            let next = Instant::now() + Duration::from_millis(self.pause_ms);
            self.receive(&socket, next, &mut report, &mut open, false).await;
            crate::tell(self.progress.as_deref(), report.answered);
        }
        let end = Instant::now() + Duration::from_millis(self.grace_ms);
        self.receive(&socket, end, &mut report, &mut open, true).await;
        report.missing = open.into_iter().take(100).collect();
        Ok(report)
    }

    /// Takes answers until then, or, if that is asked for, until none is waited for any more.
    async fn receive(
        &self,
        socket: &UdpSocket,
        until: Instant,
        report: &mut Report,
        open: &mut BTreeSet<u64>,
        only_those: bool,
    ) {
        let mut buffer = [0; 4_096];
        while !(only_those && open.is_empty()) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            match timeout(left, socket.recv(&mut buffer)).await {
                Err(_) => return,
                Ok(Err(error)) => *report.errors.entry(error.to_string()).or_default() += 1,
                Ok(Ok(length)) => {
                    let said = buffer.get(..length).unwrap_or_default();
                    let Some((number, rest)) = said.split_first_chunk::<8>() else { continue };
                    let name = rest.get(self.bytes.saturating_sub(8)..).unwrap_or_default();
                    if open.remove(&u64::from_be_bytes(*number)) {
                        report.answered += 1;
                        *report.names.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
                    } else {
                        report.twice += 1;
                    }
                }
            }
        }
    }
}
