//! `clustermesh replica`: the raft group of this cluster.

use std::{
    io::{BufRead, IsTerminal, Write},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use xds_proto::isthmus::{
    admin::v1::{
        CreateTokenRequest, RemoveReplicaRequest, ReplicaStatus, SetReplicaRoleRequest, StatusRequest,
        StatusResponse, replicas_client::ReplicasClient,
    },
    ca::v1::{self as ca, certificate_authority_client::CertificateAuthorityClient},
};

use super::{
    args::{ListArgs, StatusOutput},
    client::{Admin, REQUEST_TIMEOUT, channel, connect, within},
    failure::Failure,
    init::find_binary,
    now_unix,
    out::{self, Paint},
    render::{self, age::duration, replicas},
    replica_args::{AddArgs, AddOutput, ChangeArgs, PromoteArgs, RecoverArgs, ReplicaCommand},
    server::Server,
};

/// Between two looks at how far a change is.
const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn run(server: &Server, command: &ReplicaCommand) -> Result<(), Failure> {
    match command {
        ReplicaCommand::List(args) => list(server, args).await,
        ReplicaCommand::Add(args) => add(server, args).await,
        ReplicaCommand::Remove(args) => remove(server, args).await,
        ReplicaCommand::Promote(args) => promote(server, args).await,
        ReplicaCommand::Recover(args) => recover(args),
        ReplicaCommand::Rejoin => super::rejoin::run(server).await,
    }
}

async fn status(admin: &mut Admin) -> Result<StatusResponse, Failure> {
    within(REQUEST_TIMEOUT, admin.status(StatusRequest {})).await
}

async fn list(server: &Server, args: &ListArgs) -> Result<(), Failure> {
    let status = status(&mut connect(server).await?).await?;
    let paint = Paint::for_stdout();
    match args.output {
        StatusOutput::Table => {
            let table = replicas::table(&status.replicas).map(|table| table.render(!args.no_headers, paint));
            out::print(&format!("{}{}", replicas::warning(&status, paint), table.unwrap_or_default()))?;
            if let Some(remark) = replicas::remark(&status.replicas).filter(|_| out::stdout_is_terminal()) {
                out::remark(&format!("\n{remark}"));
            }
        }
        StatusOutput::Json => out::print(&render::json(&value(&status)))?,
        StatusOutput::Yaml => out::print(&render::yaml(&value(&status))?)?,
    }
    super::status::quorum(&status)
}

fn value(status: &StatusResponse) -> serde_json::Value {
    json!({
        "cluster": status.cluster, "leader": status.leader, "answeredBy": status.answered_by,
        "raftGroup": status.raft_group, "noQuorum": replicas::no_quorum(status),
        "replicas": replicas::values(&status.replicas),
    })
}

async fn add(server: &Server, args: &AddArgs) -> Result<(), Failure> {
    let ttl_seconds = u32::try_from(args.ttl.as_secs())
        .ok()
        .filter(|s| *s > 0)
        .ok_or_else(|| Failure::usage("--ttl must be at least 1s"))?;
    let request = CreateTokenRequest {
        purpose: "replica".to_owned(),
        ttl_seconds,
        learner: args.learner,
        ..CreateTokenRequest::default()
    };
    let mut admin = connect(server).await?;
    let answer = within(REQUEST_TIMEOUT, admin.create_token(request)).await?;
    match args.output {
        AddOutput::Text => {
            out::line(&answer.token)?;
            if out::stdout_is_terminal() {
                let left = duration(answer.expires_unix.saturating_sub(now_unix()));
                out::remark(&format!("\n{}\nThe token works once, within {left}.", next_step(args.learner)));
            }
            Ok(())
        }
        AddOutput::Json => out::print(&render::json(&json!({
            "token": answer.token, "learner": args.learner, "expiresUnix": answer.expires_unix,
            "command": START,
        }))),
    }
}

/// How the new replica is started. The token is no argument: those are in the process list for everybody to see.
const START: &str = "control-plane run --data-dir /var/lib/isthmus --listen <address>:9443 --join-file -";

fn next_step(learner: bool) -> String {
    let then = if learner {
        "It is given the log and does not vote until 'clustermesh replica promote <id>'."
    } else {
        "It votes once it has caught up: see 'clustermesh replica list'."
    };
    format!("On the new replica's machine, with the token on stdin:\n  {START}\n{then}")
}

async fn remove(server: &Server, args: &ChangeArgs) -> Result<(), Failure> {
    let mut admin = connect(server).await?;
    let before = status(&mut admin).await?;
    let own = before.answered_by == args.id;
    let request = RemoveReplicaRequest { id: args.id };
    within(REQUEST_TIMEOUT, ReplicasClient::new(channel(server).await?).remove(request)).await?;
    let gone = |status: &StatusResponse| status.replicas.iter().all(|replica| replica.id != args.id);
    let waited = wait(server, args.timeout, &format!("removing replica {}", args.id), gone).await;
    match waited {
        // It was the one that was asked, and has ended.
        Err(failure) if !own || failure.code != super::failure::UNREACHABLE => {
            return Err(failure.or_timed_out(format!(
                "replica {} is removed from the records, but the raft group has not followed within {:?}; see \
                 'clustermesh replica list'",
                args.id, args.timeout
            )));
        }
        _ => {}
    }
    out::line(&format!("replica/{} removed", args.id))?;
    // Not if it was the one that was asked.
    if let Ok(true) = had_root_key(server, args.id).await {
        out::remark(&left_behind(args.id));
    }
    Ok(())
}

/// Whether a replica took a copy of a root's key along.
async fn had_root_key(server: &Server, id: u64) -> Result<bool, Failure> {
    let mut client = CertificateAuthorityClient::new(channel(server).await?);
    let authority = within(REQUEST_TIMEOUT, client.status(ca::StatusRequest {})).await?;
    Ok(authority.roots.iter().any(|root| root.left_with.contains(&id)))
}

fn left_behind(id: u64) -> String {
    format!(
        "its disk can still open the root's key, and what its issuer signed is trusted: destroy the disk, or replace \
         the root with 'clustermesh ca rotate' (--retire-now if replica {id} is in strange hands)"
    )
}

async fn promote(server: &Server, args: &PromoteArgs) -> Result<(), Failure> {
    let ChangeArgs { id, timeout } = args.change;
    let request = SetReplicaRoleRequest { id, learner: args.demote };
    within(REQUEST_TIMEOUT, ReplicasClient::new(channel(server).await?).set_role(request)).await?;
    let (what, done) = if args.demote { ("demoting", "demoted") } else { ("promoting", "promoted") };
    let there = |status: &StatusResponse| {
        status.replicas.iter().any(|replica| replica.id == id && replica.voter != args.demote)
    };
    if let Err(failure) = wait(server, timeout, &format!("{what} replica {id}"), there).await {
        let lag = connect(server).await.ok();
        let lag = match lag {
            Some(mut admin) => status(&mut admin).await.ok().and_then(|s| find(&s, id).map(|r| r.lag)),
            None => None,
        };
        let lag = lag.map_or_else(String::new, |lag| format!(" ({lag} log entries behind)"));
        return Err(failure
            .or_timed_out(format!("replica {id} is not {done} yet{lag}; it will be once it has caught up")));
    }
    out::line(&format!("replica/{id} {done}"))
}

fn find(status: &StatusResponse, id: u64) -> Option<&ReplicaStatus> {
    status.replicas.iter().find(|replica| replica.id == id)
}

/// Asks until it is as wanted. A connection that breaks is made anew: the leader may change on the way.
async fn wait(
    server: &Server,
    timeout: Duration,
    doing: &str,
    wanted: impl Fn(&StatusResponse) -> bool,
) -> Result<(), Failure> {
    let end = Instant::now() + timeout;
    let spinner = out::spinner(doing);
    let outcome = loop {
        let seen = match connect(server).await {
            Ok(mut admin) => status(&mut admin).await,
            Err(failure) => break Err(failure),
        };
        if seen.as_ref().is_ok_and(&wanted) {
            break Ok(());
        }
        if Instant::now() >= end {
            break Err(Failure::timed_out(""));
        }
        tokio::time::sleep(POLL).await;
    };
    spinner.finish_and_clear();
    outcome
}

/// Offline, by the control plane's own program: only it can read its log.
fn recover(args: &RecoverArgs) -> Result<(), Failure> {
    if !args.force {
        return Err(Failure::usage(
            "recover makes a new group of this replica alone and gives up what the others have; say --force if they \
             are lost for good",
        ));
    }
    let binary = find_binary(args.control_plane.as_deref())?;
    let mut command = Command::new(&binary);
    command.arg("recover").arg("--data-dir").arg(&args.data_dir);
    // Says what would happen, and changes nothing.
    run_binary(command, &binary)?;
    let cluster = cluster_name(args)?;
    if !args.yes {
        confirm(&cluster)?;
    }
    let mut command = Command::new(&binary);
    command.arg("recover").arg("--data-dir").arg(&args.data_dir).arg("--cluster").arg(&cluster);
    run_binary(command, &binary)
}

fn run_binary(mut command: Command, binary: &Path) -> Result<(), Failure> {
    let ended =
        command.status().map_err(|e| Failure::failed(format!("cannot run {}: {e}", binary.display())))?;
    // It has said itself what is wrong.
    if ended.success() { Ok(()) } else { Err(Failure::failed("")) }
}

/// As the data directory says.
fn cluster_name(args: &RecoverArgs) -> Result<String, Failure> {
    let path = args.data_dir.join("keys").join("replica.json");
    let text = std::fs::read(&path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let name = value["cluster"].as_str().filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| Failure::failed(format!("{} names no cluster", path.display())))
}

fn confirm(cluster: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("stdin is no terminal: say --yes to confirm"));
    }
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "Type the cluster's name to go on: ").and_then(|()| stderr.flush());
    asked.map_err(|e| Failure::failed(format!("cannot ask: {e}")))?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Failure::failed(format!("cannot read the answer: {e}")))?;
    if answer.trim() == cluster { Ok(()) } else { Err(Failure::failed("not confirmed; nothing was changed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_keeps_the_token_out_of_the_process_list() {
        for learner in [true, false] {
            let text = next_step(learner);
            assert!(text.contains("--join-file -") && !text.contains("--join <"), "{text}");
        }
        assert!(next_step(true).contains("replica promote"));
    }

    #[test]
    fn recovery_without_force_says_what_it_would_do() {
        let args = RecoverArgs { data_dir: "/nowhere".into(), force: false, yes: true, control_plane: None };
        let failure = recover(&args).unwrap_err();
        assert!(failure.sentence.contains("--force"), "{failure:?}");
    }
}
