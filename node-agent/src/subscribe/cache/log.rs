//! A file of frames, the latest of a name counting: `length u32 | CRC-32C u32 | body`, both little-endian, the body a
//! `envoy.service.discovery.v3.Resource`; one without a resource says that the name is gone. The first frame's body is
//! the type URL. Frames are only appended, until the file is mostly of the past and is written anew.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek, Write},
    path::{Path, PathBuf},
};

use xds_client::Resource;
use xds_proto::{Message, envoy::service::discovery::v3::Resource as Wire};

use crate::persist;

/// No resource of ours is as long: a class of 10,000 rules is 1 MiB.
const MAX_FRAME: usize = 64 << 20;
/// Bytes beyond twice those of the living, after which the file is written anew.
const SLACK: u64 = 1 << 20;

/// Why a file is not read, or read no further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a frame of {0} bytes: at most {MAX_FRAME} are read")]
    TooLong(usize),
    #[error("a frame was cut off or changed")]
    Torn,
    #[error("resources of type {0:?}")]
    OtherType(String),
    #[error("a frame is no resource: {0}")]
    NoResource(#[from] prost::DecodeError),
}

/// A resource as it is kept.
pub(super) fn held(resource: &Resource) -> Wire {
    Wire {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.resource.clone()),
        ..Wire::default()
    }
}

/// That there is none of this name any more.
pub(super) fn gone(name: &str) -> Wire {
    Wire { name: name.to_owned(), ..Wire::default() }
}

/// Adds a frame.
pub(super) fn push(frames: &mut Vec<u8>, resource: Wire) {
    push_body(frames, &resource.encode_to_vec());
}

fn push_body(frames: &mut Vec<u8>, body: &[u8]) {
    // (A message has at most 2 GiB, by protobuf; one above MAX_FRAME ends the reading.)
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    frames.extend(length.to_le_bytes());
    frames.extend(crc32c::crc32c(body).to_le_bytes());
    frames.extend(body);
}

/// What a file holds, by name. None: nothing. What is damaged ends it, and is logged.
///
/// # Errors
/// It can't be read at all, or is of another type.
pub(super) fn read(path: &Path, type_url: &str) -> Result<BTreeMap<String, Resource>, Damage> {
    let mut held = BTreeMap::new();
    let Some(mut frames) = Frames::open(path, type_url)? else { return Ok(held) };
    while let Some((_, wire)) = frames.next_or_end() {
        match wire.resource {
            Some(resource) => {
                let (name, version) = (wire.name, wire.version);
                held.insert(name.clone(), Resource { name, version, resource });
            }
            None => drop(held.remove(&wire.name)),
        }
    }
    Ok(held)
}

/// A file that is appended to.
pub(super) struct Log {
    path: PathBuf,
    type_url: String,
    file: File,
    length: u64,
    /// Its length when it was written anew last.
    living: u64,
}

impl Log {
    /// Opens a log, without what is damaged in it, or makes one.
    pub(super) fn open(path: &Path, type_url: &str) -> io::Result<Self> {
        compact(path, type_url)?;
        let file = OpenOptions::new().append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), type_url: type_url.to_owned(), file, length, living: length })
    }

    /// Appends frames.
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        self.file.write_all(frames)?;
        self.length += frames.len() as u64;
        if self.length > 2 * self.living + SLACK {
            *self = Self::open(&self.path, &self.type_url)?;
        }
        Ok(())
    }
}

/// Writes a file anew with its living frames only, holding no more than one of them and the names in memory.
fn compact(path: &Path, type_url: &str) -> io::Result<()> {
    let mut latest = HashMap::new();
    let frames = match Frames::open(path, type_url) {
        Ok(frames) => frames,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "cached resources are dropped");
            None
        }
    };
    if let Some(mut frames) = frames {
        while let Some((at, wire)) = frames.next_or_end() {
            match wire.resource {
                Some(_) => drop(latest.insert(wire.name, at)),
                None => drop(latest.remove(&wire.name)),
            }
        }
    }
    let mut places: Vec<u64> = latest.into_values().collect();
    places.sort_unstable();
    persist::replace_private(path, |new| {
        let mut head = Vec::new();
        push_body(&mut head, type_url.as_bytes());
        new.write_all(&head)?;
        if places.is_empty() {
            return Ok(());
        }
        let mut old = BufReader::new(File::open(path)?);
        let (mut at, mut frame) = (0, Vec::new());
        for place in places {
            old.seek_relative(i64::try_from(place - at).map_err(io::Error::other)?)?;
            let body = read_body(&mut old).map_err(io::Error::other)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            at = place + framed(&body);
            frame.clear();
            push_body(&mut frame, &body);
            new.write_all(&frame)?;
        }
        Ok(())
    })
}

/// Bytes of a body with its head.
fn framed(body: &[u8]) -> u64 {
    8 + body.len() as u64
}

/// The frames of a file, one after the other.
struct Frames<'a> {
    path: &'a Path,
    file: BufReader<File>,
    at: u64,
}

impl<'a> Frames<'a> {
    /// `None`: there is no file.
    fn open(path: &'a Path, type_url: &str) -> Result<Option<Self>, Damage> {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = read_body(&mut file)?.ok_or(Damage::Torn)?;
        if found != type_url.as_bytes() {
            return Err(Damage::OtherType(String::from_utf8_lossy(&found).into_owned()));
        }
        let at = file.stream_position()?;
        Ok(Some(Self { path, file, at }))
    }

    /// The next resource and where its frame begins; what is damaged is logged and ends the file.
    fn next_or_end(&mut self) -> Option<(u64, Wire)> {
        match self.read_next() {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), at = self.at, "cached resources end here");
                None
            }
        }
    }

    fn read_next(&mut self) -> Result<Option<(u64, Wire)>, Damage> {
        let Some(body) = read_body(&mut self.file)? else { return Ok(None) };
        let wire = Wire::decode(body.as_slice())?;
        let at = self.at;
        self.at += framed(&body);
        Ok(Some((at, wire)))
    }
}

/// The body of the next frame; `None` at the end.
fn read_body(file: &mut impl Read) -> Result<Option<Vec<u8>>, Damage> {
    let mut head = Vec::new();
    file.take(8).read_to_end(&mut head)?;
    let [a, b, c, d, e, f, g, h] = head[..] else {
        return if head.is_empty() { Ok(None) } else { Err(Damage::Torn) };
    };
    let (length, sum) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]));
    if length > MAX_FRAME {
        return Err(Damage::TooLong(length));
    }
    let mut body = Vec::new();
    file.take(length as u64).read_to_end(&mut body)?;
    if body.len() != length || crc32c::crc32c(&body) != sum {
        return Err(Damage::Torn);
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "type.example/a.Thing";

    fn resource(name: &str, size: usize) -> Wire {
        let value = xds_proto::google::protobuf::Any { type_url: TYPE.to_owned(), value: vec![7; size] };
        Wire { resource: Some(value), version: "1".to_owned(), ..gone(name) }
    }

    fn frames(resources: impl IntoIterator<Item = Wire>) -> Vec<u8> {
        let mut frames = Vec::new();
        resources.into_iter().for_each(|resource| push(&mut frames, resource));
        frames
    }

    #[test]
    fn a_log_of_one_resource_that_changes_for_ever_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = Log::open(&path, TYPE).unwrap();
        log.append(&frames([resource("stays", 10)])).unwrap();
        for size in 0..40 {
            log.append(&frames([resource("a", 100_000 + size), resource("b", 1), gone("b")])).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() < SLACK + 400_000);
        }
        let held = read(&path, TYPE).unwrap();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["a", "stays"]);
        assert_eq!(held["a"].resource.value.len(), 100_039);
    }

    #[test]
    fn a_byte_that_changed_ends_the_log_before_its_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = Log::open(&path, TYPE).unwrap();
        log.append(&frames([resource("a", 10)])).unwrap();
        let first = std::fs::read(&path).unwrap().len();
        log.append(&frames([resource("b", 10), resource("c", 10)])).unwrap();
        let good = std::fs::read(&path).unwrap();
        let second = (good.len() - first) / 2;
        for at in first..first + second {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(read(&path, TYPE).unwrap().keys().collect::<Vec<_>>(), ["a"], "byte {at}");
        }
    }

    #[test]
    fn resources_of_another_type_are_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        Log::open(&path, "type.example/a.Other").unwrap();
        let refused = read(&path, TYPE).unwrap_err();
        assert_eq!(refused.to_string(), "resources of type \"type.example/a.Other\"");
        assert!(read(&dir.path().join("none.log"), TYPE).unwrap().is_empty());
    }
}
