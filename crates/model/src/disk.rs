//! What disks and file systems say: room, and what a name stands for.
//!
//! - [`NoRoom`] tells whoever reads it how much is needed and how much is free.
//! - [`read_regular`] reads small files by name. It takes regular files only and has a limit: a pipe
//!   would be waited for without end, and a device read without end. A model's own files come by
//!   [`read_file`](crate::read_file), which says more of what is wrong.
//! - [`cache_folder`] is where this user's caches are.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::file::other_kind;

/// A write that found no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// The file or folder that was to be written.
    pub path: PathBuf,
    /// Bytes that are needed in all, where that is known.
    pub needed: Option<u64>,
    /// Bytes that are free, where the system says so.
    pub free: Option<u64>,
    /// What ran out.
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    Quota,
    FileSize,
}

impl NoRoom {
    /// What `error` at `path` means, if it is about room.
    pub fn of(error: &io::Error, path: &Path, needed: Option<u64>) -> Option<Self> {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => Kind::Disk,
            io::ErrorKind::QuotaExceeded => Kind::Quota,
            io::ErrorKind::FileTooLarge => Kind::FileSize,
            _ => return None,
        };
        Some(Self { path: path.to_owned(), needed, free: free(path), kind })
    }

    /// Asks before the first byte is written.
    ///
    /// # Errors
    /// When the file system that `path` is on, or will be on, has less than `needed` bytes free.
    pub fn check(path: &Path, needed: u64) -> Result<(), Self> {
        match free(path) {
            Some(free) if free < needed => {
                let (path, needed, free) = (path.to_owned(), Some(needed), Some(free));
                Err(Self { path, needed, free, kind: Kind::Disk })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.kind {
            Kind::Disk => write!(f, "{path}: no space left on its disk")?,
            Kind::Quota => write!(f, "{path}: no space left in this user's quota")?,
            Kind::FileSize => write!(
                f,
                "{path}: no space left for this file, which would be larger than the file system \
                 or this process's limit (ulimit -f) allows"
            )?,
        }
        match (self.needed.map(Size), self.free.map(Size)) {
            (Some(needed), Some(free)) => write!(f, ": {needed} needed, {free} free"),
            (Some(needed), None) => write!(f, ": {needed} needed"),
            (None, Some(free)) => write!(f, ": {free} free"),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for NoRoom {}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0 >> 20;
        match self.0 {
            bytes @ 0..0x400 => write!(f, "{bytes} bytes"),
            bytes @ 0x400..0x10_0000 => write!(f, "{} KiB", bytes >> 10),
            _ => write!(f, "{mebibytes} MiB"),
        }
    }
}

/// Bytes that this user may still write where `path` is or will be, if the system says so.
pub fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists());
    free_at(there.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

#[cfg(unix)]
fn free_at(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(not(unix))]
fn free_at(_path: &Path) -> Option<u64> {
    None
}

/// A new file in `folder` that will get its name when it is whole. Whoever may read other new files
/// may read it.
pub fn temporary(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// The contents of a regular file of at most `limit` bytes.
///
/// # Errors
/// The system's, and those of kind `InvalidInput` that say what the name stands for instead, or how
/// large the file is.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    // Asked before it is opened: opening a pipe would wait for somebody to write into it.
    let metadata = path.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Some(found) = other_kind(&metadata) {
        return Err(wrong(format!("{found}: expected a regular file")));
    }
    let mut contents = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        return Err(wrong(format!("larger than {}, the most that is read", Size(limit))));
    }
    Ok(contents)
}

/// `root`, or `$VECMILL_CACHE`, or vecmill's part of the user's cache folder; `None` for a user
/// without one.
pub fn cache_folder(root: Option<&Path>) -> Option<PathBuf> {
    let from_env = || std::env::var_os("VECMILL_CACHE").filter(|path| !path.is_empty());
    root.map(Path::to_owned)
        .or_else(|| from_env().map(PathBuf::from))
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("vecmill")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let path = Path::new("/a/b");
        let of = |kind: io::ErrorKind| NoRoom::of(&kind.into(), path, Some(3 << 20));
        assert_eq!(of(io::ErrorKind::PermissionDenied), None);
        for kind in
            [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge]
        {
            let words = of(kind).unwrap().to_string();
            let expected = ["/a/b", "no space left", "3 MiB needed"];
            assert!(expected.iter().all(|part| words.contains(part)), "{words}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn more_than_any_disk_has_is_refused_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/yet/there");
        NoRoom::check(&later, 1).unwrap();
        let refused = NoRoom::check(&later, u64::MAX).unwrap_err();
        assert!(refused.free.is_some_and(|free| free > 0), "{refused}");
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, [7; 10]).unwrap();
        assert_eq!(read_regular(&file, 10).unwrap(), [7; 10]);
        let refused = |path: &Path| read_regular(path, 9).unwrap_err().to_string();
        assert!(refused(&file).contains("larger than 9 bytes"));
        assert!(refused(Path::new("/dev/zero")).contains("regular file"));
        assert!(refused(folder.path()).contains("directory"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(refused(&pipe).contains("regular file"));
    }
}
