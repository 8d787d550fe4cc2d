//! The cache on this machine that the hub's tools share, in their layout.
//!
//! `<root>/models--<owner>--<name>/` has the contents of files under their hashes in `blobs`, links
//! to them by name in `snapshots/<commit>`, and in `refs` which commit a revision was. So a file can
//! be checked: the last part of what its link leads to is its hash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use vecmill_model::MODULES_FILE;

use crate::digest::Digest;
use crate::files::ModelFiles;
use vecmill_model::disk;

/// One model in the hub's cache.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(super) fn new(root: &Path, id: &str) -> Self {
        Self { folder: root.join(format!("models--{}", id.replace('/', "--"))) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folders that files are written to.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("blobs"))?;
        // A folder that can be made may still refuse files.
        tempfile::tempfile_in(self.folder.join("blobs")).map(drop)
    }

    /// The folder with the names of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The folder with all of the model at this revision, if it is there.
    ///
    /// Tools that need fewer files leave partial folders. One without `modules.json` counts only
    /// where the cache notes that the model has none, or where nobody can be asked (`offline`).
    pub(super) fn find(&self, revision: &str, offline: bool) -> Option<PathBuf> {
        let named = disk::read_regular(&self.folder.join("refs").join(revision), 1 << 10);
        let commit = match named.map(String::from_utf8) {
            Ok(Ok(commit)) => commit.trim().to_owned(),
            _ => revision.to_owned(),
        };
        if !is_commit(&commit) {
            return None;
        }
        let snapshot = self.snapshot(&commit);
        let is_certain = offline
            || snapshot.join(MODULES_FILE).exists()
            || self.folder.join(".no_exist").join(&commit).join(MODULES_FILE).exists();
        (is_certain && ModelFiles::of(&snapshot).is_ok()).then_some(snapshot)
    }

    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.folder.join("blobs").join(name)
    }

    /// Gives the contents `part` the name `hash`, and the commit's file `name`.
    pub(super) fn keep(&self, part: &Path, hash: &str, commit: &str, name: &str) -> io::Result<()> {
        let blob = self.blob(hash);
        fs::rename(part, &blob)?;
        self.link(&blob, &self.snapshot(commit).join(name), name)
    }

    fn link(&self, blob: &Path, pointer: &Path, name: &str) -> io::Result<()> {
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder)?;
        }
        // Whatever has the name was missing or damaged.
        match fs::remove_file(pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        #[cfg(unix)]
        {
            let mut target = PathBuf::from("../..");
            target.extend(name.split('/').skip(1).map(|_| ".."));
            let blob = blob.file_name().unwrap_or_default();
            std::os::unix::fs::symlink(target.join("blobs").join(blob), pointer)
        }
        #[cfg(not(unix))]
        {
            let _ = name;
            fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
        }
    }

    /// Notes which commit a revision is.
    pub(super) fn name(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.folder.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)?;
        let mut file = disk::temporary(folder, ".vecmill-")?;
        file.write_all(commit.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// A file for contents that come in, at whose end more is to be written: what a download that
    /// broke off left under this hash, or an empty one. The name goes away with the second part.
    pub(super) fn part(&self, hash: Option<&Digest>) -> io::Result<(File, PartPath)> {
        if let Some(hash) = hash {
            let path = self.blob(&format!("{}.vecmill-part", hash.text()));
            let file = File::options().create(true).read(true).append(true).open(&path)?;
            if file.metadata()?.is_file() && file.try_lock().is_ok() {
                return Ok((file, PartPath::Kept(path)));
            }
        }
        let file = disk::temporary(&self.folder.join("blobs"), ".vecmill-")?;
        let (file, path) = file.into_parts();
        Ok((file, PartPath::Removed(path)))
    }
}

/// The name of a file that is not whole yet.
#[derive(Debug)]
pub(super) enum PartPath {
    /// Stays when the download breaks off, for the next one to go on with.
    Kept(PathBuf),
    /// Is removed when dropped.
    Removed(tempfile::TempPath),
}

impl AsRef<Path> for PartPath {
    fn as_ref(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Removed(path) => path,
        }
    }
}

/// The hash that a file of a snapshot should have, going by what its name links to.
pub(crate) fn expected(file: &Path) -> Option<Digest> {
    let blob = file.canonicalize().ok()?;
    let folder = blob.parent()?.file_name()?;
    Digest::parse(blob.file_name()?.to_str()?).filter(|_| folder == "blobs")
}

/// Removes a file of the hub's cache, and what it links to.
pub(crate) fn discard(file: &Path) {
    let blob = file.canonicalize();
    for path in blob.iter().map(PathBuf::as_path).chain([file]) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a damaged file can't be removed");
        }
    }
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
