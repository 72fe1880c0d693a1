//! Where the other replicas are, in a file beside the store: what a replica needs that can't read its store.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::{app::App, ca::files};

const FILE: &str = "replicas.json";
/// Longer lists are nobody's.
const MAX_CONTACTS: usize = 64;

type Contacts = BTreeMap<u64, String>;

/// Keeps the file as the state is, for as long as the replica runs.
pub async fn keep(app: Arc<App>) {
    let path = app.config.data_dir.join(FILE);
    let mut changes = app.replica.changes();
    let mut written: Option<Contacts> = None;
    loop {
        changes.borrow_and_update();
        let state = app.replica.applied();
        let now: Contacts = state.replicas.iter().map(|(id, record)| (*id, record.address.clone())).collect();
        drop(state);
        if !now.is_empty() && written.as_ref() != Some(&now) {
            let text = serde_json::to_vec(&now).unwrap_or_default();
            let file = path.clone();
            let kept = tokio::task::spawn_blocking(move || files::write_private(&file, &text)).await;
            match kept {
                Ok(Ok(())) => written = Some(now),
                Ok(Err(error)) => tracing::warn!(%error, file = %path.display(), "not written"),
                Err(error) => tracing::warn!(%error, file = %path.display(), "not written"),
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Whether there is anybody to come back from.
pub fn some(data_dir: &Path, own: u64) -> bool {
    !read(data_dir, own).is_empty()
}

/// The addresses of the others; none if the file is missing or damaged as well.
pub(super) fn read(data_dir: &Path, own: u64) -> Vec<String> {
    let text = files::read_private(&data_dir.join(FILE)).ok().flatten().unwrap_or_default();
    let contacts: Contacts = serde_json::from_str(&text).unwrap_or_default();
    contacts.into_iter().filter(|(id, _)| *id != own).map(|(_, address)| address).take(MAX_CONTACTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_list_is_an_empty_one_and_a_replica_does_not_ask_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(read(dir.path(), 1).is_empty());
        let write = |text: &[u8]| files::write_private(&dir.path().join(FILE), text).expect("written");
        write(br#"{"1":"a:1","2":"b:1","3":"c:1"}"#);
        assert_eq!(read(dir.path(), 2), ["a:1", "c:1"]);
        write(b"{\"1\":");
        assert!(read(dir.path(), 2).is_empty());
    }
}
