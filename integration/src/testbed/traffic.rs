//! Requests from a cluster's pods to its services, and what a replica or an agent counts of them.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Child,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, Place, Testbed, wait_until};

/// Where each replica and each agent serves its metrics, in its own network namespace.
pub(super) const METRICS: &str = "127.0.0.1:9464";
/// For what a loaded machine takes its time with.
const PATIENCE: Duration = Duration::from_secs(30);

impl Cluster {
    /// Calls a service of the namespace `shop` from a pod, by the service's virtual IP.
    ///
    /// # Errors
    /// When the client could not run; failed requests are in the report.
    pub fn call(&self, bed: &Testbed, from: &str, service: &str, more: &[&str]) -> Result<Value> {
        let words = self.words(service, more)?;
        self.pod(from)?.call(bed, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// As [`Cluster::call`], going on in the background.
    ///
    /// # Errors
    /// When the client could not be started.
    pub fn load(&self, bed: &Testbed, from: &str, service: &str, more: &[&str]) -> Result<Load> {
        let words = self.words(service, more)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(Load { client: Some(self.pod(from)?.call_in_background(bed, &words)?), progress: None })
    }

    /// Calls until one request succeeds: configuration reaches proxies a moment after it was accepted.
    ///
    /// # Errors
    /// With the last report when none succeeded in time.
    pub fn call_until_ok(&self, bed: &Testbed, from: &str, service: &str) -> Result<Value> {
        wait_until(&format!("an answer of {service} to {from}"), Duration::from_secs(15), || {
            let last = self.call(bed, from, service, &[])?;
            ensure!(last["ok"] == 1, "{last}");
            Ok(Some(last))
        })
    }

    /// The metrics of a replica.
    ///
    /// # Errors
    /// When they could not be asked for.
    pub fn replica_metrics(&self, bed: &Testbed, replica: u8) -> Result<String> {
        metrics_in(bed, self.plan.replica_namespace(replica))
    }

    /// The metrics of an agent.
    ///
    /// # Errors
    /// When they could not be asked for.
    pub fn agent_metrics(&self, bed: &Testbed, node: u8) -> Result<String> {
        metrics_in(bed, self.plan.node_namespace(node))
    }

    /// `shop call` or `shop datagrams` from a pod to an address, in the background.
    ///
    /// # Errors
    /// When the client could not be started.
    pub fn client(
        &self,
        bed: &Testbed,
        from: &str,
        client: &str,
        to: SocketAddr,
        more: &[&str],
    ) -> Result<Load> {
        let to = to.to_string();
        let host: &[&str] = if client == "call" { &["--host", "shop"] } else { &[] };
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let progress = bed.folder().join(format!("progress-{number}"));
        let written = progress.display().to_string();
        let args = [&["--to", to.as_str(), "--progress", &written][..], host, more].concat();
        let client = Some(self.pod(from)?.shop_in_background(bed, client, &args)?);
        Ok(Load { client, progress: Some(progress) })
    }

    fn words(&self, service: &str, more: &[&str]) -> Result<Vec<String>> {
        let ip = self.virtual_ip("shop", service)?;
        let mut words =
            vec!["--to".to_owned(), format!("{ip}:8080"), "--host".into(), format!("{service}.shop:8080")];
        words.extend(more.iter().map(|w| (*w).to_owned()));
        Ok(words)
    }
}

/// A client in the background. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    client: Option<Child>,
    /// Where it writes how many answers it has had.
    progress: Option<PathBuf>,
}

impl Load {
    /// Waits until it has had so many answers more than now.
    ///
    /// # Errors
    /// When they don't come.
    pub fn goes_on(&self, answers: u64) -> Result<()> {
        let wanted = self.answers().unwrap_or(0) + answers;
        wait_until(&format!("{answers} answers more"), PATIENCE, || {
            let had = self.answers()?;
            ensure!(had >= wanted, "{had} of {wanted}");
            Ok(Some(()))
        })
    }

    fn answers(&self) -> Result<u64> {
        let file = self.progress.as_ref().context("it tells of no progress")?;
        Ok(std::fs::read_to_string(file)?.trim().parse()?)
    }

    /// What it reports, once it has ended.
    ///
    /// # Errors
    /// When it failed to run.
    pub fn report(mut self) -> Result<Value> {
        let output = self.client.take().context("the client runs")?.wait_with_output()?;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "shop failed: {}", why.trim());
        serde_json::from_slice(&output.stdout).context("shop printed no JSON")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(mut client) = self.client.take() {
            // An error means that it has ended by itself.
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// A count of a report, 0 where absent.
pub fn count(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// The sum of a page's samples whose name and labels contain all of these.
pub fn sample(page: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    page.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn metrics_in(bed: &Testbed, namespace: String) -> Result<String> {
    let words = ["call", "--to", METRICS, "--host", "metrics", "--path", "/metrics"].map(str::to_owned);
    let output = Place::namespace(namespace).command(&bed.binary("shop"), &words).output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("shop call printed no JSON")?;
    ensure!(report["ok"] == 1, "no metrics: {report}");
    report["last"].as_str().map(str::to_owned).context("metrics are no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_added_up_by_name_and_labels() {
        let page =
            "# TYPE a counter\na_total{of=\"x\",to=\"y\"} 2\na_total{of=\"x\",to=\"z\"} 3\na_totals 9\nb 1\n";
        assert_eq!(sample(page, "a_total", &["of=\"x\""]), 5.0);
        assert_eq!(sample(page, "a_total", &["of=\"x\"", "to=\"z\""]), 3.0);
        assert_eq!((sample(page, "b", &[]), sample(page, "c", &[])), (1.0, 0.0));
    }
}
