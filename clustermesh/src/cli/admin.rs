//! `clustermesh admin create|list|revoke`: certificates with which administrators come from other machines.
//!
//! The key is made here and stays here; what is sent is a signing request.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{csr, pem};
use serde_json::{Value, json};
use xds_proto::isthmus::ca::v1::{
    Administrator, CreateAdministratorRequest, ListAdministratorsRequest, RevokeAdministratorRequest,
    certificate_authority_client::CertificateAuthorityClient as Client,
};

use super::{
    args::{ListArgs, StatusOutput},
    client::{REQUEST_TIMEOUT, channel, within},
    duration::parse_duration,
    failure::{Failure, NOT_FOUND},
    now_unix,
    out::{self, Paint, Tone},
    render::{
        self,
        age::{duration, timestamp, until},
        table::{Cell, Table},
    },
    server::{CERTIFICATE, KEY, ROOTS, Server},
};

/// Administrators who come with a certificate.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Make a key here, and have the cluster sign a certificate for it. Use both with --server and --credentials.
    Create(CreateArgs),
    /// List the certificates that are not over, and who asked for them.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Withdraw every certificate of an administrator, at once.
    #[command(visible_alias = "rm")]
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Whose it is: 1 to 63 of a-z, A-Z, 0-9, '.', '-', '_'. It stands in the certificate and in the logs.
    pub(crate) name: String,
    /// For how long it is valid: 30 days at most.
    #[arg(long, default_value = "12h", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) ttl: Duration,
    /// The folder for tls.crt, tls.key and ca.crt [default: the name]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Write over what the folder has.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// As 'clustermesh admin list' shows it; repeatable.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

pub(crate) async fn run(server: &Server, command: &AdminCommand) -> Result<(), Failure> {
    match command {
        AdminCommand::Create(args) => create(server, args).await,
        AdminCommand::List(args) => list(server, args).await,
        AdminCommand::Revoke(args) => revoke(server, args).await,
    }
}

async fn create(server: &Server, args: &CreateArgs) -> Result<(), Failure> {
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let valid_seconds = u32::try_from(args.ttl.as_secs())
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| Failure::usage("--ttl must be at least 1s"))?;
    let taken =
        [KEY, CERTIFICATE, ROOTS].map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    if let Some(path) = taken.filter(|_| !args.force) {
        return Err(Failure::failed(format!(
            "{} is there already; choose another folder with --out, or give --force to write over it",
            path.display()
        )));
    }
    let (csr, key) = request()?;
    let mut client = Client::new(channel(server).await?);
    let request = CreateAdministratorRequest { name: args.name.clone(), csr, valid_seconds };
    let answer = within(REQUEST_TIMEOUT, client.create_administrator(request)).await?;
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", folder.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    write(&folder.join(KEY), 0o600, &pem::private_key(key.secret_der()))?;
    let all = |list: &[Vec<u8>]| pem::certificates(list.iter().map(Vec::as_slice));
    write(&folder.join(CERTIFICATE), 0o644, &all(&answer.chain))?;
    write(&folder.join(ROOTS), 0o644, &all(&answer.roots))?;
    let end = timestamp(answer.not_after_unix);
    out::line(&format!("administrator/{} created: certificate {}, until {end}", args.name, answer.number))?;
    if let Some(door) = answer.doors.first() {
        let folder = folder.display();
        out::remark(&format!("Use it: clustermesh --server {door} --credentials {folder} status"));
    }
    Ok(())
}

/// A key, and a request for it. What name the request asks for does not matter: the signer decides.
fn request() -> Result<(Vec<u8>, mesh_tls::PrivateKeyDer<'static>), Failure> {
    let failed = |reason: String| Failure::failed(format!("cannot make a key: {reason}"));
    let anybody = TrustDomain::parse("unregistered.invalid").map_err(|error| failed(error.to_string()))?;
    csr::generate(&SpiffeId::admin(&anybody, "anybody")).map_err(|error| failed(error.to_string()))
}

/// Whole or not at all, and never readable by others in between.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    let unfinished = path.with_file_name(name);
    // Left by one that was interrupted; its mode may be another.
    let _ = fs::remove_file(&unfinished);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

async fn list(server: &Server, args: &ListArgs) -> Result<(), Failure> {
    let mut client = Client::new(channel(server).await?).max_decoding_message_size(usize::MAX);
    let answer = within(REQUEST_TIMEOUT, client.list_administrators(ListAdministratorsRequest {})).await?;
    let (all, now) = (answer.certificates, now_unix());
    match args.output {
        StatusOutput::Table if all.is_empty() => {
            out::remark("no administrator has a certificate");
            Ok(())
        }
        StatusOutput::Table => out::print(&table(&all, now).render(!args.no_headers, Paint::for_stdout())),
        StatusOutput::Json => out::print(&render::json(&value(&all))),
        StatusOutput::Yaml => out::print(&render::yaml(&value(&all))?),
    }
}

/// Each by itself: one that is not there does not keep the others.
async fn revoke(server: &Server, args: &RevokeArgs) -> Result<(), Failure> {
    let mut client = Client::new(channel(server).await?);
    let mut missing = None;
    for name in &args.names {
        let request = RevokeAdministratorRequest { name: name.clone() };
        match within(REQUEST_TIMEOUT, client.revoke_administrator(request)).await {
            Ok(answer) => {
                let plural = if answer.withdrawn == 1 { "certificate" } else { "certificates" };
                out::line(&format!("administrator/{name} revoked: {} {plural}", answer.withdrawn))?;
                if answer.tokens > 0 {
                    out::remark(&format!(
                        "unused join tokens of {name} that were withdrawn: {}",
                        answer.tokens
                    ));
                }
                if !answer.granted.is_empty() {
                    out::remark(&format!(
                        "{name} had certificates made for {}, which are still good: see 'clustermesh admin list'",
                        answer.granted.join(", ")
                    ));
                }
            }
            Err(failure) if failure.code == NOT_FOUND => missing = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    missing.map_or(Ok(()), Err)
}

fn table(certificates: &[Administrator], now: u64) -> Table {
    let mut table = Table::new(["NAME", "CERTIFICATE", "STATE", "ENDS", "AGE", "ASKED-BY"]);
    for one in certificates {
        let (state, tone) = match (one.withdrawn_by.as_str(), one.not_after_unix > now) {
            ("", true) => ("good".to_owned(), Tone::Good),
            ("", false) => ("over".to_owned(), Tone::Faint),
            (by, _) => (format!("withdrawn by {by}"), Tone::Faint),
        };
        table.row(vec![
            one.name.as_str().into(),
            one.number.to_string().into(),
            Cell::toned(state, tone),
            until(one.not_after_unix, now).into(),
            duration(now.saturating_sub(one.issued_unix)).into(),
            one.asked_by.as_str().into(),
        ]);
    }
    table
}

fn value(certificates: &[Administrator]) -> Value {
    let one = |one: &Administrator| {
        json!({
            "name": one.name, "certificate": one.number, "askedBy": one.asked_by,
            "issued": timestamp(one.issued_unix), "ends": timestamp(one.not_after_unix),
            "withdrawnBy": one.withdrawn_by,
            "withdrawn": (one.withdrawn_unix > 0).then(|| timestamp(one.withdrawn_unix)),
        })
    };
    json!({ "certificates": certificates.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_certificate_is_a_row_that_says_whether_it_is_good_and_who_asked() {
        let kim = Administrator {
            number: 7,
            name: "kim".into(),
            asked_by: "the local administrator".into(),
            issued_unix: 100,
            not_after_unix: 400,
            ..Default::default()
        };
        let lee = Administrator {
            number: 8,
            name: "lee".into(),
            asked_by: "administrator kim".into(),
            withdrawn_by: "administrator kim".into(),
            withdrawn_unix: 150,
            ..kim.clone()
        };
        assert_eq!(
            table(&[kim.clone(), lee.clone()], 160).render(true, Paint::PLAIN),
            "NAME   CERTIFICATE   STATE                            ENDS   AGE   ASKED-BY\n\
             kim    7             good                             4m     60s   the local administrator\n\
             lee    8             withdrawn by administrator kim   4m     60s   administrator kim\n"
        );
        assert_eq!(value(&[kim, lee])["certificates"][0]["withdrawn"], Value::Null);
    }

    #[test]
    fn a_key_is_for_its_owner_only_also_where_a_file_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY);
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, 0o600, "new").unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
