//! What the steps of the full story share.

use std::{path::PathBuf, thread};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Narrator;
use crate::testbed::{Cluster, ClusterPlan, DataPlane, Pod, PodPlan, Testbed, traffic::Load};

/// The testbed and its two clusters.
#[derive(Debug)]
pub struct World {
    // Before the testbed: their processes are to end first.
    west: Option<Cluster>,
    east: Option<Cluster>,
    /// The testbed.
    pub bed: Testbed,
}

impl World {
    /// An empty testbed.
    ///
    /// # Errors
    /// What the machine lacks.
    pub fn new() -> Result<Self> {
        Ok(Self { west: None, east: None, bed: Testbed::start()? })
    }

    /// Leaves everything running.
    pub fn keep(mut self) {
        self.bed.keep();
        // Their processes end when they are dropped, so they are not.
        std::mem::forget(self.west.take());
        std::mem::forget(self.east.take());
    }

    /// Starts both clusters at the same time.
    ///
    /// # Errors
    /// What did not come up.
    pub fn start(&mut self, narrator: &dyn Narrator) -> Result<()> {
        let plans = [ClusterPlan::new("west", 1), ClusterPlan::new("east", 2)];
        self.start_as(plans, narrator, &|_, _| Ok(()))
    }

    /// The same, west and east as planned; each is prepared as soon as it is up.
    ///
    /// # Errors
    /// What did not come up, or could not be prepared.
    pub fn start_as(
        &mut self,
        plans: [ClusterPlan; 2],
        narrator: &dyn Narrator,
        prepare: &(dyn Fn(&Testbed, &mut Cluster) -> Result<()> + Sync),
    ) -> Result<()> {
        let bed = &self.bed;
        let tell = |doing: &str| narrator.progress(doing);
        let start = |plan: ClusterPlan| {
            let mut cluster = Cluster::start(bed, plan, &tell)?;
            prepare(bed, &mut cluster)?;
            anyhow::Ok(cluster)
        };
        let [west, east] = plans;
        let (west, east) = thread::scope(|scope| {
            let east = scope.spawn(|| start(east));
            (start(west), east.join())
        });
        self.west = Some(west?);
        self.east = Some(east.map_err(|_| anyhow::anyhow!("the start of east panicked"))??);
        Ok(())
    }

    /// The cluster `west`.
    ///
    /// # Errors
    /// Before it was started.
    pub fn west(&self) -> Result<&Cluster> {
        self.west.as_ref().context("west has not been started")
    }

    /// The cluster `east`.
    ///
    /// # Errors
    /// Before it was started.
    pub fn east(&self) -> Result<&Cluster> {
        self.east.as_ref().context("east has not been started")
    }

    /// The testbed and west, to change it.
    ///
    /// # Errors
    /// Before it was started.
    pub fn west_mut(&mut self) -> Result<(&Testbed, &mut Cluster)> {
        Ok((&self.bed, self.west.as_mut().context("west has not been started")?))
    }

    /// Creates the pods of both halves of the shop.
    ///
    /// # Errors
    /// The first pod that did not come up.
    pub fn add_pods(&mut self, narrator: &dyn Narrator) -> Result<()> {
        let bed = &self.bed;
        let west = self.west.as_mut().context("west has not been started")?;
        let east = self.east.as_mut().context("east has not been started")?;
        let add = |cluster: &mut Cluster, pods: &[PodOf]| {
            let name = cluster.plan.name.clone();
            add_pods(bed, cluster, pods, &|pod| narrator.progress(&format!("{name}: pod {pod}")))
        };
        thread::scope(|scope| {
            let east = scope.spawn(|| {
                add(
                    east,
                    &[
                        ("pay-east", 1, DataPlane::Proxy, Some("v1")),
                        ("stock", 2, DataPlane::Proxy, Some("v1")),
                    ],
                )
            });
            add(
                west,
                &[
                    ("web", 1, DataPlane::Proxy, None),
                    ("batch", 1, DataPlane::Kernel, None),
                    ("ledger", 2, DataPlane::Kernel, Some("v1")),
                    ("pay-1", 1, DataPlane::Proxy, Some("v1")),
                    ("pay-2", 2, DataPlane::Proxy, Some("v1")),
                    ("cards-v1", 2, DataPlane::Proxy, Some("v1")),
                    ("cards-v2", 2, DataPlane::Proxy, Some("v2")),
                    ("catalog", 2, DataPlane::Envoy, Some("v1")),
                ],
            )?;
            east.join().map_err(|_| anyhow::anyhow!("a pod of east panicked"))?
        })
    }

    /// Calls a service from a pod of west, by the service's virtual IP.
    ///
    /// # Errors
    /// When the client could not run.
    pub fn call(&self, from: &str, service: &str, more: &[&str]) -> Result<Value> {
        self.west()?.call(&self.bed, from, service, more)
    }

    /// As [`World::call`], in the background.
    ///
    /// # Errors
    /// When the client could not be started.
    pub fn call_in_background(&self, from: &str, service: &str, more: &[&str]) -> Result<Load> {
        self.west()?.load(&self.bed, from, service, more)
    }

    /// Calls until one request succeeds.
    ///
    /// # Errors
    /// With the last report when none succeeded in time.
    pub fn call_until_ok(&self, from: &str, service: &str) -> Result<Value> {
        self.west()?.call_until_ok(&self.bed, from, service)
    }

    /// A pod of west.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.west()?.pod(name)
    }
}

/// A pod of the shop: its name, its node, what stands beside it, and as which version it serves.
pub type PodOf = (&'static str, u8, DataPlane, Option<&'static str>);

/// Creates pods one after the other.
///
/// # Errors
/// The first that did not come up.
pub fn add_pods(bed: &Testbed, cluster: &mut Cluster, pods: &[PodOf], tell: &dyn Fn(&str)) -> Result<()> {
    for (name, node, data_plane, serves) in pods {
        tell(name);
        let plan = PodPlan {
            namespace: "shop".into(),
            name: (*name).to_owned(),
            node: *node,
            data_plane: *data_plane,
            serves: serves.map(str::to_owned),
        };
        cluster.add_pod(bed, plan)?;
    }
    Ok(())
}

/// The caller's SPIFFE ID and the server's, as the server's proxy told its application (Envoy's
/// `x-forwarded-client-cert`).
///
/// # Errors
/// When the report's last answer carries none.
pub fn identities(report: &Value) -> Result<(String, String)> {
    let header = report
        .pointer("/last/headers/x-forwarded-client-cert")
        .and_then(Value::as_str)
        .with_context(|| format!("the application saw no x-forwarded-client-cert: {report}"))?;
    let field =
        |name: &str| header.split([';', ',']).find_map(|part| part.strip_prefix(name)).map(str::to_owned);
    match (field("URI="), field("By=")) {
        (Some(caller), Some(server)) => Ok((caller, server)),
        _ => bail!("x-forwarded-client-cert {header:?} lacks By or URI"),
    }
}

/// A file of the repository's `examples` folder.
pub fn example(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "examples", name].iter().collect();
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_identities_are_read_from_the_header() {
        let header =
            "By=spiffe://east.example/ns/shop/sa/stock;Hash=ab;URI=spiffe://west.example/ns/shop/sa/web";
        let report = json!({"last": {"headers": {"x-forwarded-client-cert": header}}});
        let (caller, server) = identities(&report).unwrap();
        assert_eq!(caller, "spiffe://west.example/ns/shop/sa/web");
        assert_eq!(server, "spiffe://east.example/ns/shop/sa/stock");
        assert!(identities(&json!({"last": {}})).is_err());
    }
}
