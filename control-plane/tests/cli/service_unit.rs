//! `packaging/systemd`: the unit, and what the process tells the service manager.

use std::{io::ErrorKind, os::unix::net::UnixDatagram, path::Path, process::Command};

use nix::sys::signal::Signal::SIGTERM;

use crate::process::{PATIENCE, Replica, WEST, three, until};

const UNIT: &str = include_str!("../../../packaging/systemd/isthmus-control-plane.service");

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    /// Of this replica, from its next start on.
    fn of(replica: &mut Replica) -> Self {
        let path = replica.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        replica.environment.push(("NOTIFY_SOCKET", path));
        Self(socket)
    }

    /// The next datagram that says something of the kind.
    #[track_caller]
    fn hears(&self, words: &str) -> String {
        let (mut buffer, mut before) = ([0; 4_096], Vec::new());
        loop {
            let length = match self.0.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{words} was never said ({error}), but {before:#?}"),
            };
            let said = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if said.contains(words) {
                return said;
            }
            before.push(said);
        }
    }
}

/// In the header of the journal.
fn damage(replica: &Replica) {
    let path = replica.data().join("raft/journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn the_unit_is_one_that_systemd_accepts_without_a_word() {
    let program = "/usr/bin/control-plane";
    assert!(UNIT.contains(program));
    // Where the program is that was just built: systemd looks whether it can be executed.
    let unit = UNIT.replace(program, env!("CARGO_BIN_EXE_control-plane"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("isthmus-control-plane.service");
    std::fs::write(&path, unit).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
    let output = match verify {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!(
                "THE UNIT IS NOT VERIFIED: systemd-analyze is missing; scripts/setup installs it (package systemd)"
            )
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    // A key that it does not know is a warning and no error, and may be of another unit of this machine.
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("isthmus")).collect();
    assert!(of_ours.is_empty(), "{said}");
}

#[test]
fn the_unit_expects_what_the_process_says() {
    let keys: Vec<&str> = UNIT.lines().collect();
    assert!(keys.contains(&"Type=notify"));
    assert!(!UNIT.contains("WatchdogSec"), "the process says no WATCHDOG=1, and would be ended for it");
    let ends = keys.iter().find_map(|key| key.strip_prefix("RestartPreventExitStatus=")).unwrap();
    let ours = [control_plane::config::EXIT_USAGE, control_plane::config::EXIT_REMOVED];
    assert_eq!(ends, ours.map(|code| code.to_string()).join(" "));
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd/control-plane.env").is_file());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_of_the_start_of_a_quarantine_and_of_the_end() {
    let mut replica = Replica::new();
    let manager = Manager::of(&mut replica);
    replica.start(&WEST, None);
    assert_eq!(manager.hears("READY=1"), "STATUS=ready\nREADY=1");
    replica.signal(SIGTERM);
    assert_eq!(manager.hears("STOPPING=1"), "STOPPING=1");
    assert_eq!(replica.ended().await, Some(0));

    // With nobody to come back from it stays in quarantine: up, and not beyond the time for a start.
    damage(&replica);
    replica.start(&[], None);
    let said = manager.hears("READY=1");
    for words in
        ["STATUS=quarantined: replica 1 neither votes nor serves", "raft/journal", "restore a backup"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    until(&replica.socket(), "it can be asked", |status| status.replicas[0].role == "damaged").await;
    replica.signal(SIGTERM);
    manager.hears("STOPPING=1");
    assert_eq!(replica.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_from_quarantine_tells_the_service_manager_so() {
    let mut all = three(&[]).await;
    all[1].signal(SIGTERM);
    assert_eq!(all[1].ended().await, Some(0));
    damage(&all[1]);
    let manager = Manager::of(&mut all[1]);
    all[1].start(&[], None);
    let said = manager.hears("READY=1");
    assert!(said.contains("STATUS=quarantined: replica 2 neither votes nor serves"), "{said}");
    assert_eq!(manager.hears("comes back"), "STATUS=replica 2 comes back as 4 with an empty log");
    assert_eq!(manager.hears("READY=1"), "STATUS=ready\nREADY=1");
}
