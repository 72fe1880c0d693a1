//! What can still be shown without root or eBPF: two control planes on loopback, joined.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Narrator, Step, world::example};
use crate::testbed::{Place, Process, ledger::Ledger, wait_until};

/// Two clusters of one replica each, in a folder of their own.
#[derive(Debug)]
pub struct Loopback {
    folder: PathBuf,
    binaries: PathBuf,
    ledger: Ledger,
    replicas: Vec<Process>,
}

impl Loopback {
    /// Nothing runs yet.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let binaries = std::env::current_exe()?.parent().context("no folder")?.to_owned();
        let ledger = Ledger::at(folder.join("ledger"));
        Ok(Self { folder: folder.to_owned(), binaries, ledger, replicas: Vec::new() })
    }

    fn clustermesh(&self, cluster: &str, args: &[&str]) -> Result<String> {
        let socket = self.folder.join(format!("{cluster}.sock"));
        let output = Command::new(self.binaries.join("clustermesh"))
            .arg("--socket")
            .arg(socket)
            .args(args)
            .output()?;
        if !output.status.success() {
            bail!("clustermesh {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// All steps, in order.
pub fn steps() -> Vec<Step<Loopback>> {
    vec![
        Step { title: "Two control planes start on loopback", vital: true, run: start },
        Step { title: "The shop's YAML is applied", vital: true, run: apply },
        Step { title: "One command joins the clusters", vital: false, run: join },
    ]
}

fn start(world: &mut Loopback, _: &dyn Narrator) -> Result<Vec<String>> {
    for name in ["west", "east"] {
        let door = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let file = |end: &str| world.folder.join(format!("{name}{end}")).display().to_string();
        let args: Vec<String> = [
            "run",
            "--data-dir",
            &file("-data"),
            "--name",
            name,
            "--trust-domain",
            &format!("{name}.example"),
            "--mesh-domain",
            "mesh.local",
            "--listen",
            &door,
            "--advertise",
            &door,
            "--admin-socket",
            &file(".sock"),
            "--pod-cidr",
            "10.1.0.0/16",
            "--service-cidr",
            "10.101.0.0/16",
            "--ready-file",
            &file(".ready"),
        ]
        .iter()
        .map(|a| (*a).to_owned())
        .collect();
        let program = world.binaries.join("control-plane");
        let mut process = Process::spawn(
            &world.ledger,
            name,
            &Place::default(),
            &program,
            &args,
            world.folder.join(format!("{name}.log")),
        )?;
        process.wait_for_file(&world.folder.join(format!("{name}.ready")), Duration::from_secs(60))?;
        world.replicas.push(process);
    }
    Ok(vec!["west and east serve on loopback, one replica each".to_owned()])
}

fn apply(world: &mut Loopback, _: &dyn Narrator) -> Result<Vec<String>> {
    world.clustermesh("west", &["apply", "-f", &example("shop-west.yaml")])?;
    world.clustermesh("east", &["apply", "-f", &example("shop-east.yaml")])?;
    let services = world.clustermesh("west", &["get", "services", "-n", "shop", "-o", "name"])?;
    Ok(vec![format!("west has {} services", services.lines().count())])
}

fn join(world: &mut Loopback, _: &dyn Narrator) -> Result<Vec<String>> {
    let token = world.clustermesh("east", &["token", "create", "--for", "peer"])?;
    world.clustermesh("west", &["join", token.trim()])?;
    let status = wait_until("east in the status of west", Duration::from_secs(20), || {
        let status: Value = serde_json::from_str(&world.clustermesh("west", &["status", "-o", "json"])?)?;
        ensure!(
            status.pointer("/peers/0/state").and_then(Value::as_str) == Some("connected"),
            "{}",
            status["peers"]
        );
        Ok(Some(status))
    })?;
    let imported = status.pointer("/peers/0/importedServices").cloned().unwrap_or_default();
    Ok(vec![format!("west imports {imported} services of east, over mTLS")])
}
