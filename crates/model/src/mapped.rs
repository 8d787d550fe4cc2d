//! Files of weights, mapped read-only: only the pages that are read become resident, and those are
//! shared with every process that maps the same file.
//!
//! The choice behind it: a copy of each file would double what a model takes while it is loaded, and
//! keep tables of words in memory of which few rows are used. What a mapping costs is that others
//! can change the file. So it never leaves this module's parent but as numbers, for which any bytes
//! are valid values; and whoever has read what it needs asks whether the file is what it was.

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

use super::{ModelError, file};

/// A file's contents.
#[derive(Debug)]
pub(super) struct MappedFile {
    map: Mmap,
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

impl MappedFile {
    /// Maps the regular file at `path`.
    #[expect(unsafe_code, reason = "the one place where memory is mapped from a file")]
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let (file, metadata) = file::open(path)?;
        // SAFETY: a `&[u8]` must not change while it is borrowed, and a page behind a file's end
        // must not be read. The mapping is private and read-only, of a regular file that was opened
        // for reading alone. Nothing in this process writes to a model's files: vecmill moves them
        // into place whole, by rename, which leaves a mapped inode as it was. That nobody else
        // rewrites or shortens one in place is asked of the operator, in SECURITY.md; should it
        // happen while a model is loaded, `check_unchanged` finds it, and at any time the bytes are
        // only ever read as integers and floating-point numbers, for which none is invalid.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| ModelError::io(path, error))?;
        Ok(Self { map, file, path: path.to_owned(), stamp: Stamp::of(&metadata) })
    }

    /// Refuses a file that was changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), ModelError> {
        let metadata = self.file.metadata().map_err(|error| ModelError::io(&self.path, error))?;
        if Stamp::of(&metadata) == self.stamp {
            Ok(())
        } else {
            Err(ModelError::Changed { path: self.path.clone() })
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// What is different after a write.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        // A system without times of change has lengths at least.
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_changed_under_its_mapping_is_found() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, b"12345678").unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        assert_eq!(&*mapped, b"12345678");
        mapped.check_unchanged().unwrap();
        let mut grown = fs::OpenOptions::new().append(true).open(&path).unwrap();
        grown.write_all(b"9").unwrap();
        assert!(matches!(mapped.check_unchanged(), Err(ModelError::Changed { .. })));
    }

    #[test]
    fn a_file_that_was_replaced_is_the_one_that_was_opened() {
        let folder = tempfile::TempDir::new().unwrap();
        let [path, other] = ["weights", "new"].map(|name| folder.path().join(name));
        fs::write(&path, b"old").unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        fs::write(&other, b"new!").unwrap();
        fs::rename(&other, &path).unwrap();
        mapped.check_unchanged().unwrap();
        assert_eq!(&*mapped, b"old");
    }
}
