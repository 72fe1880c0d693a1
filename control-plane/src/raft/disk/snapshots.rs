//! The one snapshot that a replica keeps: a checksummed file, replaced by renaming a finished one over it.
//!
//! It is written piece by piece from a state that nobody changes, sent as it is, and checked to its end before
//! anything of it is believed: at start, and when it came from another replica.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use mesh_store::{
    State,
    container::{ContainerError, Kind, Reader, Writer},
};
use tokio::{
    io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf},
    sync::watch,
};

use super::sync_dir;
use crate::raft::{
    DiskError,
    config::MAX_SNAPSHOT_BYTES,
    types::{LogId, Snapshot, SnapshotMeta},
};

/// How a snapshot begins.
pub(super) const KIND: Kind = Kind { magic: *b"isthsnap", name: "snapshot" };
/// Longest wait for a snapshot to be checked and durable.
const PATIENCE: Duration = Duration::from_secs(300);
/// The first release's: magic, format, length of the meta data, length of the state, checksum of both, both.
const FIRST_HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 4;

/// The snapshot in a replica's folder.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    path: PathBuf,
    /// The last log entry of the one that is there. Held while it is being replaced.
    current: Arc<Mutex<Option<LogId>>>,
    /// Numbers the files that arrive.
    arrivals: Arc<AtomicU64>,
    progress: Arc<watch::Sender<Progress>>,
}

/// What somebody may wait for.
#[derive(Debug, Default)]
struct Progress {
    /// The last log entry that a durable snapshot has.
    upto: u64,
    /// Why one that arrived was not taken. The replica stops then.
    failed: Option<String>,
}

/// A snapshot on its way, from its beginning.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    file: tokio::fs::File,
    /// Removed with this, unless the snapshot was installed.
    arriving: Option<PathBuf>,
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if let Some(path) = &self.arriving {
            // It is gone already if it was installed.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Snapshots {
    pub(super) fn open(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join("snapshot");
        for item in std::fs::read_dir(dir).map_err(DiskError::io(dir))? {
            let item = item.map_err(DiskError::io(dir))?;
            // Left by a replica that was killed while one was written or was arriving.
            if item.file_name().as_encoded_bytes().starts_with(b"snapshot.") {
                std::fs::remove_file(item.path()).map_err(DiskError::io(item.path()))?;
            }
        }
        let meta = head(&path)?;
        let last = meta.and_then(|meta| meta.last_log_id);
        let progress = Progress { upto: last.map_or(0, |last| last.index), failed: None };
        Ok(Self {
            path,
            current: Arc::new(Mutex::new(last)),
            arrivals: Arc::default(),
            progress: Arc::new(watch::Sender::new(progress)),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn last_index(&self) -> u64 {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.map_or(0, |last| last.index)
    }

    /// Returns once a durable snapshot has a log entry and those before it.
    ///
    /// # Errors
    /// One that arrived was not taken, or none comes in time.
    pub(super) async fn reaches(&self, index: u64) -> Result<(), String> {
        let mut progress = self.progress.subscribe();
        let there = progress.wait_for(|now| now.upto >= index || now.failed.is_some());
        match tokio::time::timeout(PATIENCE, there).await {
            Ok(Ok(now)) if now.upto >= index => Ok(()),
            Ok(Ok(now)) => Err(now.failed.clone().unwrap_or_default()),
            Ok(Err(_)) | Err(_) => Err(format!("no snapshot reaches entry {index}")),
        }
    }

    /// The state of the snapshot that is there, all of it checked.
    ///
    /// # Errors
    /// It is damaged, or of a later release.
    pub(crate) fn load(&self) -> Result<Option<(SnapshotMeta, State)>, DiskError> {
        let Some(file) = existing(&self.path)? else { return Ok(None) };
        read(&self.path, file).map(Some)
    }

    /// The snapshot that is there, to be sent.
    ///
    /// # Errors
    /// It can't be opened, or its header is damaged.
    pub(crate) fn current(&self) -> Result<Option<Snapshot>, DiskError> {
        // Held, so that meta data and content are of one file.
        let _current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(meta) = head(&self.path)? else { return Ok(None) };
        let Some(file) = existing(&self.path)? else { return Ok(None) };
        let file = tokio::fs::File::from_std(file);
        Ok(Some(Snapshot { meta, snapshot: Box::new(SnapshotFile { file, arriving: None }) }))
    }

    /// Writes one. Durable when this returns, with its bytes. An older snapshot never replaces a newer one: one
    /// that was being built while the leader's was installed is dropped.
    pub(crate) fn save(&self, meta: &SnapshotMeta, state: &State) -> Result<u64, DiskError> {
        let unfinished = self.path.with_extension("new");
        let damaged = |reason: String| DiskError::Damaged { file: unfinished.clone(), reason };
        let described = serde_json::to_vec(meta).map_err(|error| damaged(error.to_string()))?;
        let file = File::create(&unfinished).map_err(DiskError::io(&unfinished))?;
        let io = DiskError::io(&unfinished);
        let mut writer = match Writer::new(BufWriter::with_capacity(1 << 20, file), KIND, &described) {
            Ok(writer) => writer,
            Err(error) => return Err(io(error)),
        };
        mesh_store::encode_to(state, &mut writer).map_err(|error| damaged(error.to_string()))?;
        let (buffered, bytes) = writer.finish().map_err(DiskError::io(&unfinished))?;
        let file = buffered.into_inner().map_err(|error| DiskError::io(&unfinished)(error.into_error()))?;
        file.sync_all().map_err(DiskError::io(&unfinished))?;
        self.replace(meta, &unfinished)?;
        Ok(bytes)
    }

    /// A file for a snapshot that another replica sends.
    pub(crate) fn arriving(&self) -> Result<SnapshotFile, DiskError> {
        let number = self.arrivals.fetch_add(1, Ordering::Relaxed);
        let path = self.path.with_extension(format!("arriving-{number}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = tokio::fs::File::from_std(file.map_err(DiskError::io(&path))?);
        Ok(SnapshotFile { file, arriving: Some(path) })
    }

    /// Checks one that has arrived, and keeps it. Durable when this returns.
    pub(crate) fn install(&self, meta: &SnapshotMeta, arrived: SnapshotFile) -> Result<State, DiskError> {
        self.take(meta, arrived).inspect_err(|error| {
            self.progress.send_modify(|progress| progress.failed = Some(error.to_string()));
        })
    }

    fn take(&self, meta: &SnapshotMeta, mut arrived: SnapshotFile) -> Result<State, DiskError> {
        let path = match arrived.arriving.clone() {
            Some(path) => path,
            // It was opened where it is.
            None => {
                arrived = self.copied(arrived)?;
                arrived.arriving.clone().unwrap_or_default()
            }
        };
        let file = File::open(&path).map_err(DiskError::io(&path))?;
        file.sync_all().map_err(DiskError::io(&path))?;
        let (said, state) = read(&path, file)?;
        if said.last_log_id != meta.last_log_id {
            let reason = format!("it ends at {:?}, not at {:?}", said.last_log_id, meta.last_log_id);
            return Err(DiskError::Damaged { file: path, reason });
        }
        self.replace(meta, &path)?;
        arrived.arriving = None;
        Ok(state)
    }

    fn copied(&self, mut from: SnapshotFile) -> Result<SnapshotFile, DiskError> {
        let copy = self.arriving()?;
        let path = copy.arriving.clone().unwrap_or_default();
        // No operation is under way: a clone of the handle would be refused then.
        let mut source = futures::executor::block_on(from.file.try_clone())
            .map_err(DiskError::io(&path))?
            .try_into_std()
            .map_err(|_| DiskError::Damaged { file: path.clone(), reason: "it is in use".to_owned() })?;
        from.arriving = None;
        let mut target = File::options().write(true).open(&path).map_err(DiskError::io(&path))?;
        std::io::Seek::rewind(&mut source).map_err(DiskError::io(&path))?;
        std::io::copy(&mut source, &mut target).map_err(DiskError::io(&path))?;
        Ok(copy)
    }

    fn replace(&self, meta: &SnapshotMeta, finished: &Path) -> Result<(), DiskError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current > meta.last_log_id {
            return std::fs::remove_file(finished).map_err(DiskError::io(finished));
        }
        std::fs::rename(finished, &self.path).map_err(DiskError::io(&self.path))?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        *current = meta.last_log_id;
        let upto = meta.last_log_id.map_or(0, |last| last.index);
        self.progress.send_modify(|progress| progress.upto = upto);
        Ok(())
    }
}

fn existing(path: &Path) -> Result<Option<File>, DiskError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::io(path)(error)),
    }
}

/// The meta data of the file, if there is one.
fn head(path: &Path) -> Result<Option<SnapshotMeta>, DiskError> {
    let Some(mut file) = existing(path)? else { return Ok(None) };
    if first_format(path, &mut file)? {
        return read(path, existing(path)?.unwrap_or(file)).map(|(meta, _)| Some(meta));
    }
    let file = existing(path)?.unwrap_or(file);
    let (_, header) = Reader::open(BufReader::new(file), KIND).map_err(|error| refuse(path, error))?;
    serde_json::from_slice(&header)
        .map(Some)
        .map_err(|error| DiskError::Damaged { file: path.to_owned(), reason: error.to_string() })
}

fn first_format(path: &Path, file: &mut File) -> Result<bool, DiskError> {
    let mut start = [0; 12];
    match file.read_exact(&mut start) {
        Ok(()) => Ok(start[..8] == KIND.magic && start[8..] == [1, 0, 0, 0]),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(DiskError::io(path)(error)),
    }
}

/// Reads a snapshot and checks all of it.
fn read(path: &Path, mut file: File) -> Result<(SnapshotMeta, State), DiskError> {
    if first_format(path, &mut file)? {
        return read_first(path);
    }
    use std::io::Seek;
    file.rewind().map_err(DiskError::io(path))?;
    decode_file(BufReader::new(file)).map_err(|error| match error {
        Malformed::Container(error) => refuse(path, error),
        Malformed::State(mesh_store::SnapshotError::Newer { found }) => {
            DiskError::Newer { file: path.to_owned(), found, supported: mesh_store::FORMAT }
        }
        Malformed::State(error) => DiskError::Damaged { file: path.to_owned(), reason: error.to_string() },
        Malformed::Meta(error) => DiskError::Damaged { file: path.to_owned(), reason: error.to_string() },
    })
}

enum Malformed {
    Container(ContainerError),
    Meta(serde_json::Error),
    State(mesh_store::SnapshotError),
}

fn decode_file(reader: impl Read) -> Result<(SnapshotMeta, State), Malformed> {
    let (reader, header) = Reader::open(reader, KIND).map_err(Malformed::Container)?;
    let meta = serde_json::from_slice(&header).map_err(Malformed::Meta)?;
    let bytes = reader.rest(MAX_SNAPSHOT_BYTES).map_err(Malformed::Container)?;
    Ok((meta, mesh_store::decode(&bytes).map_err(Malformed::State)?))
}

/// Whether these bytes are a whole snapshot. Whatever they are, this ends, and needs memory in proportion.
pub fn is_snapshot(bytes: &[u8]) -> bool {
    decode_file(bytes).is_ok()
}

fn refuse(path: &Path, error: ContainerError) -> DiskError {
    let file = path.to_owned();
    match error {
        ContainerError::Newer { found } => {
            DiskError::Newer { file, found, supported: mesh_store::container::FORMAT }
        }
        ContainerError::Io(source) => DiskError::Io { file, source },
        other => DiskError::Damaged { file, reason: other.to_string() },
    }
}

fn read_first(path: &Path) -> Result<(SnapshotMeta, State), DiskError> {
    let bytes = std::fs::read(path).map_err(DiskError::io(path))?;
    let damaged = |reason: String| DiskError::Damaged { file: path.to_owned(), reason };
    let Some((header, rest)) = bytes.split_at_checked(FIRST_HEADER_BYTES) else {
        return Err(damaged("its header is cut".to_owned()));
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (described, state) = (word(12) as usize, u64::from(word(16)) | u64::from(word(20)) << 32);
    let expected = state.saturating_add(described as u64);
    if rest.len() as u64 != expected {
        return Err(damaged(format!("{} of {expected} bytes are there", rest.len())));
    }
    if crc32c::crc32c(rest) != word(24) {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    let meta = serde_json::from_slice(&rest[..described]).map_err(|error| damaged(error.to_string()))?;
    let state = mesh_store::decode(&rest[described..]).map_err(|error| damaged(error.to_string()))?;
    Ok((meta, state))
}

impl AsyncRead for SnapshotFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SnapshotFile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.file).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}

impl AsyncSeek for SnapshotFile {
    fn start_seek(mut self: Pin<&mut Self>, position: std::io::SeekFrom) -> std::io::Result<()> {
        Pin::new(&mut self.file).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<u64>> {
        Pin::new(&mut self.file).poll_complete(cx)
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(log_id(1, 1, index)),
            snapshot_id: index.to_string(),
            ..SnapshotMeta::default()
        }
    }

    fn state(revision: u64) -> State {
        let mut state = State::default();
        state.revision = revision;
        state
    }

    #[test]
    fn a_snapshot_is_read_back_and_never_replaced_by_an_older_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(dir.path()).expect("empty");
        assert!(snapshots.load().expect("no file is no error").is_none());
        snapshots.save(&meta(5), &state(5)).expect("saved");
        snapshots.save(&meta(4), &state(4)).expect("dropped");
        let again = Snapshots::open(dir.path()).expect("readable");
        assert_eq!(again.load().expect("readable").expect("there"), (meta(5), state(5)));
        assert_eq!(again.last_index(), 5);
        let names: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
        assert_eq!(names.len(), 1, "nothing is left over: {names:?}");
    }

    #[test]
    fn damage_anywhere_is_found_and_names_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(dir.path()).expect("empty");
        snapshots.save(&meta(5), &state(5)).expect("saved");
        let good = std::fs::read(snapshots.path()).expect("readable");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(snapshots.path(), &bad).expect("written");
            let error = snapshots.load().expect_err("damaged");
            assert!(error.to_string().contains("snapshot"), "byte {at}: {error}");
            std::fs::write(snapshots.path(), &good[..at]).expect("written");
            assert!(snapshots.load().is_err(), "cut at {at}");
            assert!(!is_snapshot(&good[..at]) && is_snapshot(&good));
        }
    }

    #[tokio::test]
    async fn one_that_arrives_is_checked_before_it_replaces_the_one_that_is_there() {
        let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (here, there) =
            (Snapshots::open(here.path()).expect("empty"), Snapshots::open(there.path()).expect("empty"));
        here.save(&meta(9), &state(9)).expect("saved");
        there.save(&meta(2), &state(2)).expect("saved");
        let mut sent = here.current().expect("readable").expect("there");
        assert_eq!(sent.meta, meta(9));
        let mut bytes = Vec::new();
        sent.snapshot.read_to_end(&mut bytes).await.expect("readable");
        for cut in [0, 10, bytes.len() - 1] {
            let mut arriving = there.arriving().expect("a file");
            arriving.write_all(&bytes[..cut]).await.expect("written");
            arriving.flush().await.expect("written");
            there.install(&meta(9), arriving).expect_err("it is cut");
        }
        assert_eq!(there.load().expect("readable").expect("there").1.revision, 2);
        let mut arriving = there.arriving().expect("a file");
        arriving.write_all(&bytes).await.expect("written");
        arriving.flush().await.expect("written");
        assert_eq!(there.install(&meta(9), arriving).expect("whole"), state(9));
        assert_eq!(there.load().expect("readable").expect("there").0, meta(9));
        let folder = there.path().parent().expect("a folder");
        assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 1, "nothing is left over");
    }

    #[test]
    fn the_first_releases_form_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let described = serde_json::to_vec(&meta(7)).expect("plain data");
        let encoded = mesh_store::encode(&state(7)).expect("plain data");
        let mut file = KIND.magic.to_vec();
        file.extend(1u32.to_le_bytes());
        file.extend((described.len() as u32).to_le_bytes());
        file.extend((encoded.len() as u64).to_le_bytes());
        file.extend(crc32c::crc32c_append(crc32c::crc32c(&described), &encoded).to_le_bytes());
        file.extend(described);
        file.extend(encoded);
        std::fs::write(dir.path().join("snapshot"), &file).expect("written");
        let snapshots = Snapshots::open(dir.path()).expect("readable");
        assert_eq!(snapshots.load().expect("readable").expect("there"), (meta(7), state(7)));
        let last = file.len() - 3;
        file[last] ^= 1;
        std::fs::write(dir.path().join("snapshot"), &file).expect("written");
        assert!(matches!(snapshots.load(), Err(DiskError::Damaged { .. })));
        file[8] = 99;
        std::fs::write(dir.path().join("snapshot"), &file).expect("written");
        assert!(matches!(snapshots.load(), Err(DiskError::Newer { found: 99, .. })));
    }
}
