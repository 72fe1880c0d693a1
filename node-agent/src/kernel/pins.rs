//! The directories: where pins lie, and which cgroup is hooked.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use ebpf_shared::limits;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::{KernelError, sys};

/// Paths below the agent's bpffs directory.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
    /// Where the maps of this agent's programs are.
    maps: &'static str,
}

/// Maps that programs use.
const MAPS: &str = "maps";
/// Maps of a newer format, while they are filled and the programs that use them take over. (Names with dots are the
/// bpffs' own.)
const NEXT: &str = "maps-next";
/// Those of the older format, when no program uses them any more.
const OLD: &str = "maps-old";

impl Pins {
    /// Makes the directories, mounting a bpffs if there is none, and looks at the format of maps that are there: beside
    /// those of an older one the new ones get a directory of their own. Gives the older format.
    pub(super) fn prepare(dir: &Path) -> Result<(Self, Option<u32>), KernelError> {
        fs::create_dir_all(dir).map_err(|source| KernelError::path("directory", dir, source))?;
        let kind = statfs(dir).map_err(|errno| KernelError::path("directory", dir, errno.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), None::<&str>)
                .map_err(|errno| KernelError::path("mounting a bpffs on", dir, errno.into()))?;
        }
        let mut pins = Self::at(dir);
        pins.settle()?;
        for dir in [pins.maps(), pins.links()] {
            fs::create_dir_all(&dir).map_err(|source| KernelError::path("directory", dir, source))?;
        }
        let old = pins.check_format()?;
        if old.is_some() {
            pins.maps = NEXT;
            fs::create_dir_all(pins.maps())
                .map_err(|source| KernelError::path("directory", pins.maps(), source))?;
            // Filled to the end, and programs may be using them by now; or else begun again.
            if format_of(&pins.map("FORMAT"))? != limits::FORMAT {
                remove_maps(&pins.maps())?;
            }
        } else {
            remove_all(&pins.dir.join(NEXT))?;
        }
        Ok((pins, old))
    }

    /// Ends what an agent that died had not: from the moment on at which the old maps get another name, no program uses
    /// them.
    fn settle(&self) -> Result<(), KernelError> {
        let [maps, next, old] = [MAPS, NEXT, OLD].map(|name| self.dir.join(name));
        if !maps.exists() && next.exists() && old.exists() {
            rename(&next, &maps)?;
        }
        if maps.exists() { remove_all(&old) } else { Ok(()) }
    }

    /// The maps that were filled beside the old ones take their place, and the old ones go.
    pub(super) fn replace_old(&mut self) -> Result<(), KernelError> {
        let [maps, next, old] = [MAPS, NEXT, OLD].map(|name| self.dir.join(name));
        rename(&maps, &old)?;
        rename(&next, &maps)?;
        self.maps = MAPS;
        remove_all(&old)
    }

    /// A map of the older format.
    pub(super) fn old_map(&self, name: &str) -> PathBuf {
        self.dir.join(MAPS).join(name)
    }

    /// Where they are, if an agent has made them.
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), maps: MAPS }
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join(self.maps)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the pinned links, sorted.
    pub(super) fn link_names(&self) -> Result<Vec<String>, KernelError> {
        list(&self.links())
    }

    /// The older format of the maps that are there.
    fn check_format(&self) -> Result<Option<u32>, KernelError> {
        match format_of(&self.map("FORMAT"))? {
            limits::FORMAT => Ok(None),
            // Written last: whoever began here did not get to the end, and no program uses these maps.
            0 => remove_maps(&self.maps()).map(|()| None),
            older @ ..limits::FORMAT => Ok(Some(older)),
            found => Err(KernelError::Format { dir: self.dir.clone(), found, expected: limits::FORMAT }),
        }
    }
}

/// 0: there is none.
fn format_of(path: &Path) -> Result<u32, KernelError> {
    match path.try_exists() {
        Ok(true) => read_format(path),
        Ok(false) => Ok(0),
        Err(source) => Err(KernelError::path("pinned map", path, source)),
    }
}

/// Takes the programs out of the kernel and forgets all maps: pods are then *unguarded*. For drained nodes,
/// and for tests. What is not there is no error; the mount itself stays.
pub fn unload(bpffs_dir: &Path) -> Result<(), KernelError> {
    let pins = Pins::at(bpffs_dir);
    if pins.links().exists() {
        for name in pins.link_names()? {
            remove_link(&pins.link(&name))?;
        }
        remove_dir(&pins.links())?;
    }
    [MAPS, NEXT, OLD].into_iter().try_for_each(|name| remove_all(&bpffs_dir.join(name)))
}

fn rename(from: &Path, to: &Path) -> Result<(), KernelError> {
    fs::rename(from, to).map_err(|source| KernelError::path("renaming", from, source))
}

/// Removes a directory of maps; it is no error if it is not there.
fn remove_all(dir: &Path) -> Result<(), KernelError> {
    if !dir.exists() {
        return Ok(());
    }
    remove_maps(dir)?;
    remove_dir(dir)
}

/// Whether a directory is on a bpffs, so that none need be mounted.
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|kind| kind.filesystem_type() == BPF_FS_MAGIC)
}

/// Opens the cgroup whose sockets are to be hooked.
pub(super) fn open_cgroup(dir: &Path) -> Result<Cgroup, KernelError> {
    let kind = statfs(dir).map_err(|errno| KernelError::path("cgroup", dir, errno.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(KernelError::NotACgroup { dir: dir.to_owned() });
    }
    // Every cgroup but the root has a type (Documentation/admin-guide/cgroup-v2.rst, "Core Interface Files").
    if !dir.join("cgroup.type").exists() {
        return Err(KernelError::RootCgroup { dir: dir.to_owned() });
    }
    let file = File::open(dir).map_err(|source| KernelError::path("cgroup", dir, source))?;
    let inode = file.metadata().map_err(|source| KernelError::path("cgroup", dir, source))?.ino();
    Ok(Cgroup { file: Arc::new(file), inode })
}

#[derive(Clone)]
pub(super) struct Cgroup {
    pub(super) file: Arc<File>,
    /// Names the cgroup in the pins: another one has another.
    pub(super) inode: u64,
}

fn read_format(path: &Path) -> Result<u32, KernelError> {
    let error = |source| KernelError::Map { name: "FORMAT", source };
    let data = MapData::from_pin(path).map_err(error)?;
    let map: Array<MapData, u32> = Map::Array(data).try_into().map_err(error)?;
    map.get(&0, 0).map_err(error)
}

fn list(dir: &Path) -> Result<Vec<String>, KernelError> {
    let error = |source: io::Error| KernelError::path("directory", dir, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        // Every name here was made by this module; another one is not ours to touch.
        if let Ok(name) = entry.map_err(error)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn remove_maps(dir: &Path) -> Result<(), KernelError> {
    for name in list(dir)? {
        remove(&dir.join(name))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), KernelError> {
    fs::remove_dir(dir).map_err(|source| KernelError::path("directory", dir, source))
}

/// Removes a link from its place, and its pin; it is no error if it is not there.
pub(super) fn remove_link(path: &Path) -> Result<(), KernelError> {
    let error = |source| KernelError::path("pinned link", path, source);
    match sys::open_pinned(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
        Ok(link) => match sys::detach_link(link.as_fd()) {
            // Its place is gone already.
            Err(source) if source.raw_os_error() == Some(libc::ENOLINK) => {}
            other => other.map_err(error)?,
        },
    }
    remove(path)
}

/// Removes the pin of something that is not attached; it is no error if it is not there.
fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::path("pin", path, source))
        }
        _ => Ok(()),
    }
}
