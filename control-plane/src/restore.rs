//! `control-plane restore`: a new cluster of one replica from a backup. Nothing runs meanwhile.

use std::{fs::File, io::BufReader, path::Path, time::SystemTime};

use anyhow::{Context, bail, ensure};
use mesh_store::backup;

use crate::{
    ca::{self, files},
    config::RestoreArgs,
    group::Group,
    raft,
};

const KEYS_NEEDED: &str = "the keys of the cluster are needed: copy the folder 'keys' of any of its replicas to the data \
                           directory, or make a new authority with --new-authority";

/// Restores, and says what was done.
///
/// # Errors
/// One sentence. Whatever is wrong with the backup is found before anything is changed; of a store that was begun
/// nothing is used.
pub async fn run(args: &RestoreArgs) -> anyhow::Result<String> {
    mesh_tls::install_provider();
    let shown = args.from.display();
    let file = File::open(&args.from).with_context(|| format!("--from {shown}"))?;
    let (header, state) =
        backup::read(BufReader::new(file)).with_context(|| format!("--from {shown} is not a good backup"))?;
    let (raft, keys) = (args.data_dir.join("raft"), args.data_dir.join("keys"));
    ensure!(
        !raft.exists(),
        "--data-dir {}: there is a store already; give another folder, or move {} away",
        args.data_dir.display(),
        raft.display()
    );
    let has_keys = keys.join("replica.json").exists();
    if args.new_authority && has_keys {
        bail!("--new-authority: {} holds keys already; move them away if they are of no use", keys.display());
    }
    if !args.new_authority && !has_keys {
        bail!("{KEYS_NEEDED}");
    }
    files::private_folder(&args.data_dir)
        .with_context(|| format!("--data-dir {}", args.data_dir.display()))?;
    let now = SystemTime::now();
    let (mut state, id) = backup::restored(state, &header, &args.advertise, ca::unix(now));
    let unfinished = args.data_dir.join("raft.restoring");
    remove(&unfinished)?;
    if args.new_authority {
        ca::restore::anew(&keys, &mut state, id, now)?;
    } else {
        ca::restore::with_keys(&keys, &mut state, id).context(KEYS_NEEDED)?;
    }
    // Replicas of the lost cluster that are still somewhere don't belong to it.
    Group { member: true, ..Group::new() }.keep(&keys)?;
    raft::found(&unfinished, id, &args.advertise, &state).await?;
    std::fs::rename(&unfinished, &raft).with_context(|| raft.display().to_string())?;
    File::open(&args.data_dir)?.sync_all()?;
    let again = match args.new_authority {
        true => "\nIts roots are new: let nodes and peers join again, each with a new token.",
        false => "",
    };
    Ok(format!(
        "restored cluster {} from revision {} ({} objects): it goes on at revision {} as replica {id} at {}{again}\n\
         Start it with 'control-plane run --data-dir {} --advertise {}', then add the other replicas anew.\n",
        header.cluster,
        header.revision,
        header.objects,
        state.revision,
        args.advertise,
        args.data_dir.display(),
        args.advertise,
    ))
}

/// Left by a restore that did not end.
fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| folder.display().to_string())
        }
        _ => Ok(()),
    }
}
