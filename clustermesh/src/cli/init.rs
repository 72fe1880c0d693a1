//! `clustermesh init`: starts the first replica of a new cluster, and says what comes next.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    args::{DEFAULT_SOCKET, InitArgs},
    client,
    failure::Failure,
    out,
    server::Server,
};

const BINARY: &str = "control-plane";
const LOG: &str = "control-plane.log";
const READY: &str = "ready";
/// What the control plane keeps of itself in its folder.
const REPLICA: &str = "replica.json";
/// Between two looks whether it serves.
const POLL: Duration = Duration::from_millis(50);

pub(crate) async fn run(server: &Server, args: &InitArgs) -> Result<(), Failure> {
    let socket = server.local("init")?;
    let trust_domain =
        args.trust_domain.clone().unwrap_or_else(|| format!("{}.{}", args.name, args.mesh_domain));
    let restart = check_folder(&args.data_dir, &args.name, &trust_domain)?;
    if client::connect(server).await.is_ok() {
        return Err(Failure::failed(format!(
            "a control plane serves {} already; look at it with 'clustermesh status', or choose another --socket",
            socket.display()
        )));
    }
    let binary = find_binary(args.control_plane.as_deref())?;
    make_folder(&args.data_dir, 0o700)?;
    if let Some(folder) = socket.parent().filter(|f| !f.as_os_str().is_empty()) {
        make_folder(folder, 0o755)?;
    }
    let ready = args.data_dir.join(READY);
    match fs::remove_file(&ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::failed(format!("cannot remove {}: {error}", ready.display())));
        }
        _ => {}
    }
    let mut command = Command::new(&binary);
    command.args(arguments(socket, args, &trust_domain, &ready));
    if args.foreground {
        // Only returns if it fails.
        let error = command.exec();
        return Err(Failure::failed(format!("cannot run {}: {error}", binary.display())));
    }
    let log = args.data_dir.join(LOG);
    let mut child = start(command, &binary, &log)?;
    let spinner = out::spinner(&format!("starting {} (process {})", args.name, child.id()));
    let outcome = wait(&mut child, &ready, &log, args.timeout).await;
    spinner.finish_and_clear();
    outcome?;
    out::print(&next_steps(socket, args, &trust_domain, child.id(), restart))
}

/// Whether this cluster is in the folder already. Refuses a folder with anything else in it.
fn check_folder(folder: &Path, name: &str, trust_domain: &str) -> Result<bool, Failure> {
    let shown = folder.display();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Failure::failed(format!("cannot read the folder {shown}: {error}"))),
    };
    let entries: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    let candidates = std::iter::once(folder.join(REPLICA)).chain(entries.iter().map(|e| e.join(REPLICA)));
    for path in candidates {
        let Ok(text) = fs::read(&path) else { continue };
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let field = |names: [&str; 2]| names.iter().find_map(|n| value[*n].as_str()).unwrap_or("").to_owned();
        let (cluster, domain) = (field(["cluster", "name"]), field(["trust_domain", "trustDomain"]));
        if cluster == name && domain == trust_domain {
            return Ok(true);
        }
        return Err(Failure::failed(format!(
            "{shown} belongs to the cluster {cluster:?} (trust domain {domain}); choose another --data-dir, \
             or its own --name and --trust-domain to start it again"
        )));
    }
    // Left by a start that failed before the cluster was made.
    let ours = |path: &PathBuf| path.file_name().is_some_and(|n| n == LOG || n == READY);
    match entries.iter().find(|path| !ours(path)) {
        None => Ok(false),
        Some(_) => Err(Failure::failed(format!(
            "{shown} is not empty and holds no cluster; choose an empty or new folder with --data-dir"
        ))),
    }
}

fn make_folder(folder: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
        .map_err(|e| Failure::failed(format!("cannot make the folder {}: {e}", folder.display())))
}

pub(crate) fn find_binary(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(Failure::failed(format!("there is no control plane at {}", path.display())))
        };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|folder| folder.join(BINARY)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| folder.join(BINARY)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Failure::failed(format!(
                "the program {BINARY} is neither beside this one nor on the PATH; name it with --control-plane"
            ))
        })
}

/// The command line of the control plane.
fn arguments(socket: &Path, args: &InitArgs, trust_domain: &str, ready: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["run".into()];
    let mut flag = |name: &str, value: OsString| words.extend([OsString::from(name), value]);
    flag("--data-dir", args.data_dir.clone().into());
    flag("--name", args.name.clone().into());
    flag("--trust-domain", trust_domain.into());
    flag("--mesh-domain", args.mesh_domain.clone().into());
    flag("--listen", args.listen.to_string().into());
    flag("--admin-socket", socket.into());
    flag("--ready-file", ready.into());
    for (name, value) in [
        ("--advertise", &args.advertise),
        ("--pod-cidr", &args.pod_cidr),
        ("--pod-cidr6", &args.pod_cidr6),
        ("--service-cidr", &args.service_cidr),
        ("--service-cidr6", &args.service_cidr6),
    ] {
        if let Some(value) = value {
            flag(name, value.into());
        }
    }
    for gateway in &args.gateways {
        flag("--gateway", gateway.to_string().into());
    }
    words
}

/// In a process group of its own, so that Ctrl-C here does not end it.
fn start(mut command: Command, binary: &Path, log: &Path) -> Result<Child, Failure> {
    let open = || fs::OpenOptions::new().create(true).append(true).open(log);
    let failed = |e: std::io::Error| Failure::failed(format!("cannot write {}: {e}", log.display()));
    command.stdin(Stdio::null()).stdout(open().map_err(failed)?).stderr(open().map_err(failed)?);
    command
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::failed(format!("cannot run {}: {e}", binary.display())))
}

async fn wait(child: &mut Child, ready: &Path, log: &Path, timeout: Duration) -> Result<(), Failure> {
    let end = Instant::now() + timeout;
    let mut ticks = tokio::time::interval(POLL);
    loop {
        ticks.tick().await;
        if let Some(status) = child.try_wait().map_err(|e| Failure::failed(format!("cannot wait: {e}")))? {
            return Err(Failure::failed(ended(status, &last_line(log), log)));
        }
        if ready.exists() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Failure::timed_out(format!(
                "the control plane (process {}) does not serve yet after {timeout:?}; see its log {}",
                child.id(),
                log.display()
            )));
        }
    }
}

fn ended(status: ExitStatus, last: &str, log: &Path) -> String {
    let said = if last.is_empty() { String::new() } else { format!(": {last}") };
    format!("the control plane ended at its start ({status}){said}; its log is {}", log.display())
}

/// The last thing that the control plane said.
fn last_line(log: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tail().unwrap_or_default();
    text.lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .map(|l| l.trim().chars().take(400).collect())
        .unwrap_or_default()
}

fn next_steps(socket: &Path, args: &InitArgs, trust_domain: &str, pid: u32, restart: bool) -> String {
    let prefix = if socket == Path::new(DEFAULT_SOCKET) {
        String::new()
    } else {
        format!("  export CLUSTERMESH_SOCKET={}\n", socket.display())
    };
    let what = if restart { "runs again" } else { "is up" };
    format!(
        "{name} {what} (trust domain {trust_domain}, process {pid}, log {log})\n\n\
         Next:\n\
         {prefix}  \
         clustermesh status                      # replicas, peers, data planes\n  \
         clustermesh token create --for node     # for 'node-agent run --join-file', on each node\n  \
         clustermesh replica add                 # for 'control-plane run --join-file'; 3 or 5 survive failures\n  \
         clustermesh apply -f shop.yaml --wait   # your workloads, services and policies\n  \
         clustermesh token create --for peer     # for 'clustermesh join', on another cluster\n",
        name = args.name,
        log = args.data_dir.join(LOG).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command as Parsed};
    use clap::Parser;

    fn args(line: &str) -> InitArgs {
        let words = format!("clustermesh init --name west {line}");
        match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
            Parsed::Init(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_are_passed_on() {
        let args =
            args("--listen 192.0.2.1:9443 --data-dir /d --pod-cidr 10.1.0.0/16 --gateway 192.0.2.2:15443");
        let words = arguments(Path::new("/s.sock"), &args, "west.example", Path::new("/d/ready"));
        let line: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
        assert_eq!(
            line.join(" "),
            "run --data-dir /d --name west --trust-domain west.example --mesh-domain mesh.local \
             --listen 192.0.2.1:9443 --admin-socket /s.sock --ready-file /d/ready \
             --pod-cidr 10.1.0.0/16 --gateway 192.0.2.2:15443"
        );
    }

    #[test]
    fn a_folder_of_another_cluster_is_refused_and_the_own_one_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        assert_eq!(check_folder(&data, "west", "west.example"), Ok(false));
        fs::create_dir_all(data.join("ca")).unwrap();
        fs::write(data.join(LOG), "").unwrap();
        let strange = check_folder(&data, "west", "west.example").unwrap_err();
        assert!(strange.sentence.contains("holds no cluster"), "{strange:?}");
        let replica = r#"{"id": 1, "cluster": "west", "trust_domain": "west.example"}"#;
        fs::write(data.join("ca").join(REPLICA), replica).unwrap();
        assert_eq!(check_folder(&data, "west", "west.example"), Ok(true));
        let other = check_folder(&data, "east", "east.example").unwrap_err();
        assert!(other.sentence.contains("belongs to the cluster \"west\""), "{other:?}");
        assert!(check_folder(&data, "west", "other.example").is_err());
    }

    #[test]
    fn a_failed_start_repeats_what_the_control_plane_said_last() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(LOG);
        fs::write(&log, "starting\nerror: address in use\n\n").unwrap();
        assert_eq!(last_line(&log), "error: address in use");
        assert_eq!(last_line(&folder.path().join("none")), "");
    }

    #[test]
    fn next_steps_name_the_socket_only_if_it_is_not_the_usual_one() {
        let args = args("--data-dir /d");
        let usual = next_steps(Path::new(DEFAULT_SOCKET), &args, "west.example", 7, false);
        assert!(
            !usual.contains("CLUSTERMESH_SOCKET") && usual.starts_with("west is up (trust domain"),
            "{usual}"
        );
        let other = next_steps(Path::new("/s.sock"), &args, "west.example", 7, true);
        assert!(other.contains("  export CLUSTERMESH_SOCKET=/s.sock\n"), "{other}");
    }
}
