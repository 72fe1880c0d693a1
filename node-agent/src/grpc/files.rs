//! Files that change together: a reader of the certificate never meets another one's key. They are links into a
//! directory that is swapped as a whole, as the kubelet does with a pod's volumes.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::unistd::{Gid, Uid, chown};

use super::Material;

/// What `GRPC_XDS_BOOTSTRAP` names.
pub const BOOTSTRAP: &str = "bootstrap.json";
/// The certificate chain, leaf first.
pub const CERTIFICATE: &str = "cert.pem";
/// Its key.
pub const PRIVATE_KEY: &str = "key.pem";
/// Roots of the own trust domain.
pub const ROOTS: &str = "roots.pem";

/// The link that is swapped.
const CURRENT: &str = "..data";

/// Whose the files are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not <uid>:<gid>");
        let (uid, gid) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self { uid: uid.parse().map_err(|_| bad())?, gid: gid.parse().map_err(|_| bad())? })
    }
}

/// Where the files are.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    owner: Option<Owner>,
}

impl Directory {
    /// Makes it, for its owner alone.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn make(path: &Path, owner: Option<Owner>) -> io::Result<Self> {
        // gRPC is told the path, and has a working directory of its own.
        let path = std::path::absolute(path)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let directory = Self { path, owner };
        directory.give(&directory.path)?;
        Ok(directory)
    }

    /// Absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts new contents in place of the old ones, all in one step.
    ///
    /// # Errors
    /// The file system refuses; then the old contents stand.
    pub fn write(&self, material: &Material, bootstrap: &str) -> io::Result<()> {
        let before = fs::read_link(self.path.join(CURRENT)).ok();
        let name = if before.as_deref() == Some(Path::new("..a")) { "..b" } else { "..a" };
        let fresh = self.path.join(name);
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new().mode(0o700).create(&fresh)?;
        let files = [
            (CERTIFICATE, &*material.chain),
            (PRIVATE_KEY, &material.key),
            (ROOTS, &material.roots),
            (BOOTSTRAP, bootstrap),
        ];
        for (file, text) in files {
            let path = fresh.join(file);
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?
                .write_all(text.as_bytes())?;
            self.give(&path)?;
        }
        self.give(&fresh)?;
        self.link(Path::new(name), CURRENT)?;
        for (file, _) in files {
            let wanted = Path::new(CURRENT).join(file);
            if fs::read_link(self.path.join(file)).ok().as_ref() != Some(&wanted) {
                self.link(&wanted, file)?;
            }
        }
        // Whoever has one of the old files open can still read it.
        match before {
            Some(old) => fs::remove_dir_all(self.path.join(old)),
            None => Ok(()),
        }
    }

    /// Makes a link, in place of whatever had its name.
    fn link(&self, target: &Path, name: &str) -> io::Result<()> {
        let new = self.path.join("..new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        symlink(target, &new)?;
        fs::rename(&new, self.path.join(name))
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        chown(path, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mesh_model::identity::{SpiffeId, TrustDomain};

    use super::*;

    fn material(version: u32) -> Material {
        let domain = TrustDomain::parse("west.example").unwrap();
        Material {
            identity: SpiffeId::workload(&domain, "shop", "web"),
            chain: format!("chain {version}"),
            key: format!("key {version}"),
            roots: "roots".into(),
        }
    }

    #[test]
    fn contents_are_replaced_in_one_step_and_nothing_old_stays() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::make(&folder.path().join("grpc"), None).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        for version in 1..=3 {
            directory.write(&material(version), "{}").unwrap();
            assert_eq!(read(CERTIFICATE), format!("chain {version}"));
            assert_eq!(read(PRIVATE_KEY), format!("key {version}"));
            assert_eq!((read(ROOTS).as_str(), read(BOOTSTRAP).as_str()), ("roots", "{}"));
        }
        let folders = fs::read_dir(directory.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(folders.count(), 1, "the old key is gone from the disk");
        let key = fs::metadata(directory.path().join(PRIVATE_KEY)).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_half_written_directory_of_a_killed_process_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::make(folder.path(), None).unwrap();
        fs::create_dir(folder.path().join("..a")).unwrap();
        symlink("nowhere", folder.path().join("..new")).unwrap();
        directory.write(&material(1), "{}").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(CERTIFICATE)).unwrap(), "chain 1");
    }

    #[test]
    fn an_owner_is_two_numbers() {
        assert_eq!("1000:100".parse(), Ok(Owner { uid: 1000, gid: 100 }));
        assert!("app:app".parse::<Owner>().is_err() && "7".parse::<Owner>().is_err());
    }
}
