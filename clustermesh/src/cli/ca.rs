//! `clustermesh ca status|rotate`

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use xds_proto::isthmus::ca::v1::{
    RotateRequest, StatusRequest, StatusResponse,
    certificate_authority_client::CertificateAuthorityClient as Client,
};

use super::{
    args::TokenOutput,
    client::{REQUEST_TIMEOUT, channel, within},
    duration::parse_duration,
    failure::Failure,
    now_unix, out,
    render::{age::until, json, table::Table},
    server::Server,
};

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(500);
/// Members that are named while a rotation waits for them.
const SHOWN: usize = 5;

/// The certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show roots, issuers, and a rotation under way.
    Status(CaStatusArgs),
    /// Replace the root: every data plane trusts the new one before anything is signed by it, and no connection is
    /// dropped. If a rotation is under way, go on with it.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CaStatusArgs {
    #[arg(short, long, value_enum, default_value = "text")]
    output: TokenOutput,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// Do not wait for nodes and peers that don't confirm. They must register or join again if they come back.
    #[arg(long)]
    skip_unconfirmed: bool,
    /// Remove the old root as soon as the replicas no longer use it: certificates under it are refused from then on.
    #[arg(long)]
    retire_now: bool,
    /// Begin, and don't wait for the end.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the end. The rotation goes on without this command.
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

pub(crate) async fn run(server: &Server, command: &CaCommand) -> Result<(), Failure> {
    let mut client = Client::new(channel(server).await?);
    match command {
        CaCommand::Status(args) => {
            let status = within(REQUEST_TIMEOUT, client.status(StatusRequest {})).await?;
            match args.output {
                TokenOutput::Text => out::print(&text(&status, now_unix())),
                TokenOutput::Json => out::print(&json(&value(&status))),
            }
        }
        CaCommand::Rotate(args) => rotate(&mut client, args).await,
    }
}

async fn rotate(client: &mut Client<tonic::transport::Channel>, args: &RotateArgs) -> Result<(), Failure> {
    let request = RotateRequest { skip_unconfirmed: args.skip_unconfirmed, retire_now: args.retire_now };
    let mut status = within(REQUEST_TIMEOUT, client.rotate(request)).await?;
    let spinner = out::spinner("rotating the root");
    let deadline = tokio::time::Instant::now() + args.timeout;
    let mut shown = String::new();
    while let Some(rotation) = &status.rotation {
        let line = progress(rotation);
        spinner.set_message(line.clone());
        if line != shown && !out::stdout_is_terminal() {
            out::line(&line)?;
        }
        shown = line;
        if args.no_wait {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Failure::timed_out(format!(
                "the rotation is not over: {shown}; it goes on by itself, see 'clustermesh ca status'"
            )));
        }
        tokio::time::sleep(POLL).await;
        status = within(REQUEST_TIMEOUT, client.status(StatusRequest {})).await?;
    }
    spinner.finish_and_clear();
    let root = status.roots.first().map(|root| short(&root.sha256)).unwrap_or_default();
    out::line(&format!("the root is {root}; nothing chains to another"))
}

fn progress(rotation: &xds_proto::isthmus::ca::v1::Rotation) -> String {
    let doing = match rotation.phase.as_str() {
        "preparing" => "1/3 preparing: everybody is to trust the new root",
        "activating" => "2/3 activating: replicas get issuers under it",
        _ => "3/3 reissuing: nodes and workloads get certificates under it",
    };
    if rotation.waiting_for.is_empty() {
        return doing.to_owned();
    }
    let named = rotation.waiting_for.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match usize::try_from(rotation.waiting).unwrap_or(usize::MAX).saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{doing}; waiting for {named}{more}")
}

fn short(sha256: &str) -> String {
    sha256.chars().take(16).collect()
}

fn numbers(list: &[u64]) -> String {
    list.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn text(status: &StatusResponse, now: u64) -> String {
    let paint = out::Paint::for_stdout();
    let mut roots = Table::new(["ROOT", "ACTIVE", "ENDS", "SEALED TO"]);
    for root in &status.roots {
        let active = if root.active { "yes" } else { "no" };
        roots.row(vec![
            short(&root.sha256).into(),
            active.into(),
            until(root.not_after_unix, now).into(),
            numbers(&root.sealed_to).into(),
        ]);
    }
    let mut issuers = Table::new(["REPLICA", "ISSUER", "ROOT", "ENDS", "LEAVES"]);
    for issuer in &status.issuers {
        issuers.row(vec![
            issuer.replica.to_string().into(),
            short(&issuer.serial).into(),
            short(&issuer.root_sha256).into(),
            until(issuer.not_after_unix, now).into(),
            super::render::age::duration(issuer.leaf_seconds).into(),
        ]);
    }
    let rotation = match &status.rotation {
        Some(rotation) => format!("rotation {}: {}\n", rotation.number, progress(rotation)),
        None => format!("no rotation is under way ({} so far)\n", status.rotations),
    };
    let advice: String = status.advice.iter().map(|line| format!("! {line}\n")).collect();
    format!("{}\n{}\n{rotation}{advice}", roots.render(true, paint), issuers.render(true, paint))
}

fn value(status: &StatusResponse) -> serde_json::Value {
    json!({
        "roots": status.roots.iter().map(|root| json!({
            "sha256": root.sha256,
            "active": root.active,
            "notBeforeUnix": root.not_before_unix,
            "notAfterUnix": root.not_after_unix,
            "sealedTo": root.sealed_to,
            "leftWith": root.left_with,
        })).collect::<Vec<_>>(),
        "issuers": status.issuers.iter().map(|issuer| json!({
            "replica": issuer.replica,
            "serial": issuer.serial,
            "rootSha256": issuer.root_sha256,
            "notBeforeUnix": issuer.not_before_unix,
            "notAfterUnix": issuer.not_after_unix,
            "leafSeconds": issuer.leaf_seconds,
        })).collect::<Vec<_>>(),
        "rotation": status.rotation.as_ref().map(|rotation| json!({
            "number": rotation.number,
            "phase": rotation.phase,
            "toSha256": rotation.to_sha256,
            "sinceUnix": rotation.since_unix,
            "waitingFor": rotation.waiting_for,
            "waiting": rotation.waiting,
            "skipUnconfirmed": rotation.skip_unconfirmed,
            "retireNow": rotation.retire_now,
        })),
        "rotations": status.rotations,
        "revokedRegistrations": status.revoked_registrations,
        "advice": status.advice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_proto::isthmus::ca::v1::{Root, Rotation};

    #[test]
    fn progress_names_the_first_that_are_waited_for_and_counts_the_rest() {
        let waiting_for: Vec<String> = (1..=7).map(|n| format!("node n{n}")).collect();
        let rotation =
            Rotation { phase: "preparing".to_owned(), waiting: 7, waiting_for, ..Default::default() };
        assert_eq!(
            progress(&rotation),
            "1/3 preparing: everybody is to trust the new root; \
             waiting for node n1, node n2, node n3, node n4, node n5 and 2 more"
        );
    }

    #[test]
    fn the_status_shows_roots_phase_and_advice() {
        let status = StatusResponse {
            roots: vec![Root {
                sha256: "ab".repeat(32),
                active: true,
                sealed_to: vec![1, 2],
                ..Default::default()
            }],
            rotation: Some(Rotation { number: 2, phase: "activating".to_owned(), ..Default::default() }),
            advice: vec!["rotate".to_owned()],
            ..Default::default()
        };
        let shown = text(&status, 0);
        for words in ["abababababababab", "1,2", "rotation 2: 2/3 activating", "! rotate"] {
            assert!(shown.contains(words), "{shown}");
        }
    }
}
