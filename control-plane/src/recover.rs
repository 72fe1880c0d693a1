//! `control-plane recover`: the command behind `clustermesh replica recover`.

use std::{fmt::Write, path::Path};

use crate::{
    ca::{ReplicaFile, files},
    config::RecoverArgs,
    group::Group,
    raft::salvage::{self, Survivor},
};

/// Makes a new group of a stopped replica's disk, if the cluster's name confirms it; else tells what would happen.
/// Answers what there is to say.
///
/// # Errors
/// One sentence. Nothing has changed.
pub async fn run(args: &RecoverArgs) -> anyhow::Result<String> {
    let keys = args.data_dir.join("keys");
    let raft = args.data_dir.join("raft");
    let replica = replica(&keys)?;
    anyhow::ensure!(raft.is_dir(), "{}: there is no log here", raft.display());
    let Some(confirmed) = &args.cluster else {
        let survivor = salvage::survey(&raft, replica.id).await?;
        return Ok(warning(&replica.cluster, &survivor));
    };
    anyhow::ensure!(
        *confirmed == replica.cluster,
        "--cluster {confirmed} is not the cluster of {}, which is {}: nothing was changed",
        args.data_dir.display(),
        replica.cluster
    );
    let before = salvage::survey(&raft, replica.id).await?;
    // The name first: should this end in between, the replica finds no other of its group, and it is done again.
    let group = Group { member: true, ..Group::new() };
    group.keep(&keys)?;
    salvage::make_group(&raft, replica.id).await?;
    Ok(done(&replica.cluster, &before, &group))
}

fn replica(keys: &Path) -> anyhow::Result<ReplicaFile> {
    let path = keys.join("replica.json");
    let text = files::read_private(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let text =
        text.ok_or_else(|| anyhow::anyhow!("{}: is missing: this is no replica's folder", path.display()))?;
    serde_json::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

fn warning(cluster: &str, survivor: &Survivor) -> String {
    let mut text = format!(
        "This makes a new raft group of replica {id} of {cluster} ({address}) alone.\n\
         Its last log entry is {last} (term {term}), of which {committed} are known to be committed; the state is at \
         revision {revision}.\n",
        id = survivor.id,
        address = survivor.address,
        last = survivor.last_log_index,
        term = survivor.last_log_term,
        committed = survivor.committed_index,
        revision = survivor.revision,
    );
    // Writing to a string does not fail.
    let _ = match survivor.last_log_index.saturating_sub(survivor.committed_index) {
        0 => writeln!(text, "Lost: whatever the others acknowledged after that entry."),
        open => writeln!(
            text,
            "Lost: whatever the others acknowledged after that entry. Taken over: {open} entries that may never have \
             been acknowledged."
        ),
    };
    let _ = writeln!(text, "Given up for good, even if they come back with their disks:");
    for (id, (address, votes)) in &survivor.others {
        let _ = writeln!(text, "  replica {id} at {address}{}", if *votes { "" } else { " (learner)" });
    }
    if survivor.others.is_empty() {
        let _ = writeln!(text, "  nobody: it is the only member already");
    }
    text
}

fn done(cluster: &str, survivor: &Survivor, group: &Group) -> String {
    format!(
        "Replica {id} is the only member of the new group {group} of {cluster}. Start it as before.\n\
         Its revision goes on {skipped} above {revision}, so that nobody sees it go back.\n\
         Replicas of the old group are refused: empty their data directories and join them with 'clustermesh replica add'.\n",
        id = survivor.id,
        group = group.id,
        skipped = mesh_store::limits::RECOVERY_REVISIONS,
        revision = survivor.revision,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_names_what_is_kept_what_is_lost_and_who_is_given_up() {
        let survivor = Survivor {
            id: 2,
            address: "192.0.2.2:9443".to_owned(),
            last_log_index: 120,
            last_log_term: 7,
            committed_index: 117,
            revision: 88,
            others: [(1, ("192.0.2.1:9443".to_owned(), true)), (4, ("192.0.2.4:9443".to_owned(), false))]
                .into(),
        };
        assert_eq!(
            warning("west", &survivor),
            "This makes a new raft group of replica 2 of west (192.0.2.2:9443) alone.\n\
             Its last log entry is 120 (term 7), of which 117 are known to be committed; the state is at revision 88.\n\
             Lost: whatever the others acknowledged after that entry. Taken over: 3 entries that may never have been \
             acknowledged.\n\
             Given up for good, even if they come back with their disks:\n  \
             replica 1 at 192.0.2.1:9443\n  replica 4 at 192.0.2.4:9443 (learner)\n"
        );
    }
}
