//! `clustermesh backup` and `clustermesh restore`.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use mesh_store::backup::{self, Header};
use tonic::Streaming;
use xds_proto::isthmus::admin::v1::{BackupChunk, BackupRequest, recovery_client::RecoveryClient};

use super::{
    backup_args::{BackupArgs, RestoreArgs},
    client::{REQUEST_TIMEOUT, channel, within},
    failure::Failure,
    init::find_binary,
    out,
    server::Server,
};

pub(crate) async fn run(server: &Server, args: &BackupArgs) -> Result<(), Failure> {
    if args.verify {
        return out::print(&described(&args.file, &verify(&args.file)?));
    }
    let mut recovery = RecoveryClient::new(channel(server).await?);
    let chunks = within(REQUEST_TIMEOUT, recovery.backup(BackupRequest {})).await?;
    let unfinished = beside(&args.file);
    let header = match take(chunks, &unfinished).await {
        Ok(header) => header,
        Err(failure) => {
            // What was begun is worth nothing.
            let _ = fs::remove_file(&unfinished);
            return Err(failure);
        }
    };
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", args.file.display()));
    fs::rename(&unfinished, &args.file).map_err(failed)?;
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(failed)?;
    out::print(&described(&args.file, &header))
}

pub(crate) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let header = verify(&args.file)?;
    if args.check {
        return out::print(&described(&args.file, &header));
    }
    let binary = find_binary(args.control_plane.as_deref())?;
    let mut command = Command::new(&binary);
    command.arg("restore").arg("--data-dir").arg(&args.data_dir).arg("--from").arg(&args.file);
    command.args(args.advertise.iter().flat_map(|address| ["--advertise", address]));
    command.args(args.new_authority.then_some("--new-authority"));
    // It says itself what is wrong.
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure { code: super::failure::FAILED, sentence: String::new() }),
        Err(error) => Err(Failure::failed(format!("cannot run {}: {error}", binary.display()))),
    }
}

/// Writes what comes, and believes it only once it was read again from the disk.
async fn take(mut chunks: Streaming<BackupChunk>, path: &Path) -> Result<Header, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    // It holds no key, but everything else: for its owner only.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    while let Some(chunk) = chunks.message().await? {
        file.write_all(&chunk.data).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    verify(path)
}

fn verify(path: &Path) -> Result<Header, Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    let (header, _) = backup::read(BufReader::new(file))
        .map_err(|error| Failure::failed(format!("{shown} is not a good backup: {error}")))?;
    Ok(header)
}

fn described(path: &Path, header: &Header) -> String {
    let made = super::render::age::timestamp(header.created_unix);
    format!(
        "{}: cluster {}, trust domain {}, revision {}, {} objects, made {made} by release {}\n",
        path.display(),
        header.cluster,
        header.trust_domain,
        header.revision,
        header.objects,
        header.release
    )
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    path.with_file_name(name)
}
