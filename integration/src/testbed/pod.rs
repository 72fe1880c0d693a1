//! Pods: a namespace, the CNI plugin, an application, and a data plane beside it.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Cluster, Place, Process, Testbed, envoy};

/// What stands beside the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlane {
    /// Nothing: L3/L4 only.
    Kernel,
    /// Our proxy.
    Proxy,
    /// The real Envoy.
    Envoy,
}

/// A pod to be.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// Namespace of its Workload.
    pub namespace: String,
    /// Name of its Workload.
    pub name: String,
    /// The node that it runs on, from 1.
    pub node: u8,
    /// What stands beside the application.
    pub data_plane: DataPlane,
    /// `shop serve --version`; None: no application is started.
    pub serves: Option<String>,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// What it was made from.
    pub plan: PodPlan,
    /// The address that the CNI plugin gave it.
    pub address: String,
    /// That of IPv6, if it has one.
    pub address6: Option<String>,
    /// Where its processes run.
    pub place: Place,
    /// The application.
    pub app: Option<Process>,
    /// The proxy or Envoy.
    pub sidecar: Option<Process>,
}

impl Pod {
    /// Ends the pod's processes at once, as a node that dies would.
    pub fn kill(&mut self) {
        for process in [&mut self.sidecar, &mut self.app].into_iter().flatten() {
            process.kill();
        }
    }

    /// Runs `shop call` in the pod and reads its report.
    ///
    /// # Errors
    /// When it could not run; failed requests are in the report.
    pub fn call(&self, bed: &Testbed, args: &[&str]) -> Result<Value> {
        let mut words = vec!["call".to_owned()];
        words.extend(args.iter().map(|a| (*a).to_owned()));
        let output = self.place.command(&bed.binary("shop"), &words).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("shop call {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("shop call printed no JSON")
    }

    /// As [`Pod::call`], going on in the background.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn call_in_background(&self, bed: &Testbed, args: &[&str]) -> Result<std::process::Child> {
        self.shop_in_background(bed, "call", args)
    }

    /// A client of `shop` (`call`, `datagrams`) in the background.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn shop_in_background(
        &self,
        bed: &Testbed,
        client: &str,
        args: &[&str],
    ) -> Result<std::process::Child> {
        let mut words = vec![client.to_owned()];
        words.extend(args.iter().map(|a| (*a).to_owned()));
        let mut command = self.place.command(&bed.binary("shop"), &words);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }
}

impl Cluster {
    /// A pod.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("{} has no pod {name}", self.plan.name))
    }

    /// Makes a pod: namespace, CNI ADD, application, data plane; returns when both serve.
    ///
    /// # Errors
    /// The plugin's own words, or the log of what did not come up.
    pub fn add_pod(&mut self, bed: &Testbed, plan: PodPlan) -> Result<()> {
        let namespace = self.plan.pod_namespace(&plan.name);
        bed.add_namespace(&namespace)?;
        let answer = self.cni(bed, "ADD", &plan)?;
        let address = answer
            .pointer("/ips/0/address")
            .and_then(Value::as_str)
            .and_then(|a| a.split('/').next())
            .with_context(|| format!("the CNI result has no address: {answer}"))?
            .to_owned();
        let address6 = answer.pointer("/ips/1/address").and_then(Value::as_str);
        let address6 = address6.and_then(|a| a.split('/').next()).map(str::to_owned);
        let place = self.pod_place(&plan.name, plan.node);
        let folder = self.folder.join(&plan.name);
        fs::create_dir_all(&folder)?;
        let mut app = None;
        if let Some(version) = &plan.serves {
            let ready = folder.join("app-ready");
            let args = ["serve", "--name", &plan.name, "--version", version, "--cluster", &self.plan.name];
            let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            args.extend(["--ready-file".to_owned(), ready.display().to_string()]);
            if self.plan.dual_stack && plan.data_plane == DataPlane::Kernel {
                args.extend(["--listen", "[::]:8080"].map(str::to_owned));
            }
            let what = format!("the application of {}", plan.name);
            let mut process = Process::spawn(
                &bed.ledger,
                &what,
                &place,
                &bed.binary("shop"),
                &args,
                folder.join("app.log"),
            )?;
            process.wait_for_file(&ready, Duration::from_secs(20))?;
            app = Some(process);
        }
        let sidecar = match plan.data_plane {
            DataPlane::Kernel => None,
            DataPlane::Proxy => {
                let ready = folder.join("proxy-ready");
                let args = [
                    "run".to_owned(),
                    "--agent-socket".to_owned(),
                    self.agent_socket(plan.node).display().to_string(),
                    "--node-id".to_owned(),
                    format!("proxy~{}/{}", plan.namespace, plan.name),
                    "--admin".to_owned(),
                    "127.0.0.1:15000".to_owned(),
                    "--ready-file".to_owned(),
                    ready.display().to_string(),
                ];
                let what = format!("the proxy of {}", plan.name);
                let log = folder.join("proxy.log");
                let mut process =
                    Process::spawn(&bed.ledger, &what, &place, &bed.binary("proxy"), &args, log)?;
                process.wait_for_file(&ready, Duration::from_secs(30))?;
                Some(process)
            }
            DataPlane::Envoy => Some(envoy::start(bed, self, &plan, &place, &folder)?),
        };
        self.pods.insert(plan.name.clone(), Pod { plan, address, address6, place, app, sidecar });
        Ok(())
    }

    /// Ends a pod's processes and removes its network by CNI DEL.
    ///
    /// # Errors
    /// The plugin's own words.
    pub fn remove_pod(&mut self, bed: &Testbed, name: &str) -> Result<()> {
        let mut pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        pod.kill();
        self.cni(bed, "DEL", &pod.plan)?;
        Ok(())
    }

    /// Runs the CNI plugin as a container runtime would: by environment and standard input.
    ///
    /// # Errors
    /// The plugin's own error message.
    pub fn cni(&self, bed: &Testbed, command: &str, plan: &PodPlan) -> Result<Value> {
        use std::io::Write;
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "isthmus",
            "type": "isthmus-cni",
            "agentSocket": self.agent_socket(plan.node),
        });
        let mut child = Command::new(bed.binary("isthmus-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{}-{}", self.plan.name, plan.name))
            .env("CNI_NETNS", format!("/run/netns/{}", self.plan.pod_namespace(&plan.name)))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &bed.binaries)
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={}", plan.namespace, plan.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("CNI {command} of {}: {}", plan.name, String::from_utf8_lossy(&output.stdout).trim());
        }
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).context("the CNI plugin printed no JSON")
    }
}
