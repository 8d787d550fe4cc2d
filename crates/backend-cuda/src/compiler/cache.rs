//! Compiled code in files, so that only the first start compiles.
//!
//! A file's name is a hash of all that its contents depend on, and its contents begin with their
//! own hash: whatever a crash or a full disk left behind is compiled anew. Files are written beside
//! their place and renamed, so several processes may start at once. A folder that can't be written
//! costs time at the next start and is no error. Nothing is ever deleted: a version of vecmill adds
//! about a megabyte.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vecmill_model::disk::read_regular;

const HASH_BYTES: usize = 32;
/// The most of a file that is read: compiled code has some hundred kilobytes.
const LIMIT: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

/// A name for what is made of `parts`.
pub(super) fn key<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Cache {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// What was written under `key`, if it is whole.
    pub(super) fn read(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = read_regular(&self.file(key)?, LIMIT).ok()?;
        let (hash, code) = bytes.split_at_checked(HASH_BYTES)?;
        (Sha256::digest(code).as_slice() == hash).then(|| code.to_vec())
    }

    /// Keeps `code`, as far as the system allows.
    pub(super) fn write(&self, key: &str, code: &[u8]) {
        let Some(file) = self.file(key) else { return };
        // The next start compiles again then; there is nobody who could do better.
        let _ = write_whole(&file, code);
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{key}.cubin")))
    }
}

fn write_whole(file: &Path, code: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&Sha256::digest(code))?;
    temporary.write_all(code)?;
    if file.is_dir() {
        fs::remove_dir(file)?; // nothing of ours is a folder, and it would be in the way for ever
    }
    temporary.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(folder.path().join("new")));
        assert_eq!(cache.read("a"), None);
        cache.write("a", b"code");
        assert_eq!(cache.read("a").as_deref(), Some(&b"code"[..]));
        let file = cache.file("a").unwrap();
        for damaged in [&b"short"[..], &fs::read(&file).unwrap()[..HASH_BYTES + 3]] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.read("a"), None);
        }
        cache.write("a", b"code");
        assert_eq!(cache.read("a").as_deref(), Some(&b"code"[..]));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_of_code_is_neither_waited_for_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(folder.path().to_owned()));
        let file = cache.file("a").unwrap();
        let made: [&dyn Fn(); 3] = [
            &|| {
                let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
                assert!(made.success());
            },
            &|| fs::create_dir(&file).unwrap(),
            &|| fs::File::create(&file).unwrap().set_len(1 << 40).unwrap(),
        ];
        for make in made {
            make();
            assert_eq!(cache.read("a"), None);
            cache.write("a", b"code");
            assert_eq!(cache.read("a").as_deref(), Some(&b"code"[..]), "it is replaced");
            fs::remove_file(&file).unwrap();
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let cache = Cache::new(Some(file.join("below")));
        cache.write("a", b"code");
        assert_eq!(cache.read("a"), None);
    }

    #[test]
    fn parts_are_told_apart() {
        let keys = [["ab", "c"], ["a", "bc"]].map(|parts| key(parts.into_iter()));
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn many_may_write_and_read_the_same_at_once() {
        let (folder, code) = (tempfile::tempdir().unwrap(), vec![7; 100_000]);
        let cache = Cache::new(Some(folder.path().to_owned()));
        cache.write("a", &code);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.write("a", &code);
                        assert!(cache.read("a").as_ref() == Some(&code), "never half written");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
