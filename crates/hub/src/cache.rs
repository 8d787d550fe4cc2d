//! Models on disk: `<root>/models/<owner>--<name>/<revision>/`.
//!
//! A model's folder is made under another name and renamed into place, so that it is there whole or
//! not at all. A file lock keeps processes from fetching the same model twice; the system takes it
//! off a process that is killed, so whoever holds it may sweep up what such a process left. What
//! damaged a model since it came is found by its `manifest`; it is replaced then.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use vecmill_model::WEIGHTS_FILE;
use vecmill_model::disk::cache_folder;

use tempfile::TempDir;

use super::FetchError;
use super::digest::Digest;
use super::files::{self, ModelFiles};
use super::manifest::Manifest;
use super::remote;

/// What the names of unfinished folders start with.
const PARTIAL: &str = ".partial-";

/// All cached models.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `root`, or at `$VECMILL_CACHE`, or in the user's cache folder.
    pub(super) fn open(root: Option<&Path>) -> Result<Self, FetchError> {
        cache_folder(root).map(|root| Self { root }).ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::NotFound, "this user has no home folder");
            FetchError::Cache { path: PathBuf::from("~/.cache/vecmill"), error }
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a model, whose names have been checked.
    pub(super) fn entry(&self, id: &str, revision: &str) -> Entry {
        let parent = self.root.join("models").join(id.replace('/', "--"));
        let folder = parent.join(revision.replace('/', "--"));
        Entry { parent, folder }
    }

    /// Where hub downloads go when the hub's own cache can't be written to.
    pub(super) fn hub_folder(&self) -> PathBuf {
        self.root.join("hub")
    }
}

/// The place of one model at one revision.
#[derive(Debug)]
pub(super) struct Entry {
    parent: PathBuf,
    folder: PathBuf,
}

/// Why a model in the cache is of no use.
#[derive(Debug)]
pub(super) enum NotFound {
    /// It isn't there.
    Absent,
    /// A file is not what it was.
    Damaged(String),
}

/// Held by the one process that fills an entry.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Entry {
    /// The model's folder, if it is there and has not been damaged; otherwise what is wrong.
    pub(super) fn find(&self, weights: Option<&str>) -> Result<PathBuf, NotFound> {
        if !self.folder.is_dir() {
            return Err(NotFound::Absent);
        }
        let checked = match Manifest::read(&self.folder) {
            Some(mut manifest) => manifest.check(&self.folder),
            None => adopt(&self.folder, weights),
        };
        checked.map(|()| self.folder.clone()).map_err(NotFound::Damaged)
    }

    /// Waits until no other process fills this entry, and removes what killed ones left.
    pub(super) fn lock(&self) -> Result<Lock, FetchError> {
        fs::create_dir_all(&self.parent).map_err(FetchError::written(&self.parent, None))?;
        let path = self.parent.join(".lock");
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(FetchError::cache(&path)(error));
        }
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(FetchError::written(&path, None))?;
        if file.try_lock().is_err() {
            let lock = path.display();
            tracing::info!(%lock, "another process is fetching this model: waiting");
            file.lock().map_err(FetchError::cache(&path))?;
        }
        self.sweep();
        Ok(Lock(file))
    }

    /// Removes unfinished folders; whoever calls holds the lock, so nobody is at work in them.
    fn sweep(&self) {
        let is_partial =
            |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PARTIAL);
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        for entry in entries.filter(is_partial) {
            let path = entry.path();
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "can't remove a stale folder");
            }
        }
    }

    /// A folder to work in, on the same file system; it is removed when dropped.
    pub(super) fn work_folder(&self) -> Result<TempDir, FetchError> {
        let folder = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.parent);
        folder.map_err(FetchError::written(&self.parent, None))
    }

    /// Takes the model in `source` into the cache, if its files are what they should be and its
    /// weights have the hash `sha256`.
    ///
    /// Files are linked where the file system allows it, and copied otherwise.
    pub(super) fn import(
        &self,
        source: &Path,
        sha256: Option<&str>,
    ) -> Result<PathBuf, FetchError> {
        let files = ModelFiles::of(source).map_err(FetchError::incomplete(source))?;
        for file in files.all() {
            let path = source.join(file);
            if let Some(hash) = remote::expected(&path) {
                verify(&path, &hash)?;
            }
        }
        files::check_weights(source, &files)?;
        if let Some(expected) = sha256.and_then(Digest::parse) {
            verify(&source.join(WEIGHTS_FILE), &expected)?;
        }
        let work = self.work_folder()?;
        let staged = work.path().join("model"); // not `work` itself, which only its owner can read
        for file in files.all() {
            let (source, target) = (source.join(file), staged.join(file));
            let size = source.metadata().ok().map(|metadata| metadata.len());
            link_or_copy(&source, &target).map_err(FetchError::written(&target, size))?;
        }
        let manifest = Manifest::of(&staged, &files).map_err(FetchError::cache(&staged))?;
        manifest.write(&staged).map_err(FetchError::written(&staged, None))?;
        if self.folder.symlink_metadata().is_ok() {
            let damaged = work.path().join("damaged");
            fs::rename(&self.folder, damaged).map_err(FetchError::cache(&self.folder))?;
        }
        fs::rename(&staged, &self.folder).map_err(FetchError::written(&self.folder, None))?;
        Ok(self.folder.clone())
    }
}

/// Checks a model that has no manifest as far as it can be, and gives it one.
fn adopt(folder: &Path, weights: Option<&str>) -> Result<(), String> {
    let files = ModelFiles::of(folder)?;
    files::check_weights(folder, &files).map_err(|error| error.to_string())?;
    let manifest = Manifest::of(folder, &files).map_err(|error| error.to_string())?;
    if let Some(expected) = weights.and_then(Digest::parse) {
        verify(&folder.join(WEIGHTS_FILE), &expected).map_err(|error| error.to_string())?;
    }
    // A folder that can't be written to is checked like this at each start.
    let _ = manifest.write(folder);
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn link_or_copy(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    // The hub's cache has links to files; a hard link to a link would break with it.
    let source = source.canonicalize()?;
    fs::hard_link(&source, target).or_else(|_| fs::copy(&source, target).map(drop))
}

fn verify(path: &Path, expected: &Digest) -> Result<(), FetchError> {
    let differs = expected.differs(path).map_err(FetchError::cache(path))?;
    let Some(found) = differs else { return Ok(()) };
    let expected = expected.text().to_owned();
    Err(FetchError::Hash { path: path.to_owned(), expected, found })
}
