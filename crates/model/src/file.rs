//! Files of a model, opened by name with suspicion.
//!
//! Every file of a model comes through here, whoever reads it. Only a regular file of a bounded
//! size is read: a pipe would be waited for and a device never ends. "Not there" and "there, but
//! can't be read" are two things: only the first gives an optional file its default. A link whose
//! target is missing is of the second kind, for a listing shows the file.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ModelError;

/// The most bytes that are read of a file of settings; honest ones have kilobytes, few a megabyte.
pub const SETTINGS_LIMIT: u64 = 4 << 20;

/// Reads the file at `path`, which has at most `limit` bytes.
///
/// ```
/// use vecmill_model::ModelError;
/// use vecmill_model::{SETTINGS_LIMIT, read_file};
///
/// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
/// assert!(read_file(&folder.join("Cargo.toml"), SETTINGS_LIMIT).is_ok());
/// let missing = read_file(&folder.join("config.json"), SETTINGS_LIMIT);
/// assert!(matches!(missing, Err(ModelError::MissingFile { .. })));
/// ```
///
/// # Errors
/// [`ModelError::MissingFile`] only where nothing has this name; others where something has it but
/// can't be read, or is a folder, a pipe or a device, or is too large, or is empty or what tools leave
/// in a file's place.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let (file, metadata) = open(path)?;
    let too_large =
        |found| ModelError::TooLarge { path: path.to_owned(), what: "the file", limit, found };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    // It may have grown since, or be one of the system's files, which say that they are empty.
    let read = read.map_err(|error| ModelError::io(path, error))? as u64;
    match stand_in(&bytes) {
        _ if read > limit => Err(too_large(read)),
        Some(found) => Err(ModelError::StandIn { path: path.to_owned(), found }),
        None => Ok(bytes),
    }
}

/// As [`read_file`]; `None` where nothing has this name.
///
/// # Errors
/// As for [`read_file`], without [`ModelError::MissingFile`].
pub fn read_optional_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ModelError> {
    optional(read_file(path, limit))
}

/// Whether a regular file that can be opened is at `path`.
///
/// # Errors
/// As for [`read_optional_file`].
pub fn has_file(path: &Path) -> Result<bool, ModelError> {
    Ok(optional(open(path))?.is_some())
}

/// The names in a folder, as far as they can be read; for what is only said, never for what counts.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    const ENTRIES: usize = 4096; // models have some twenty
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.take(ENTRIES).flatten().map(|entry| entry.file_name().into_string());
    names.flatten().collect()
}

/// `error`, which names the file that is there if only the case of its name differs.
pub(super) fn explained(error: ModelError) -> ModelError {
    let ModelError::MissingFile { path } = error else { return error };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut names = path.parent().map(names_in).unwrap_or_default().into_iter();
    match names.find(|other| other.eq_ignore_ascii_case(name)) {
        Some(found) => ModelError::OtherCase { path, found },
        None => ModelError::MissingFile { path },
    }
}

fn optional<T>(result: Result<T, ModelError>) -> Result<Option<T>, ModelError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(ModelError::MissingFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `bytes` are that tools leave in a file's place; `None` if they may be the file.
pub(super) fn stand_in(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.get(..bytes.len().min(64)).unwrap_or_default().trim_ascii_start();
    let starts = |with: &str| {
        start.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    if bytes.is_empty() {
        return Some("it is empty: fetch it again");
    }
    if starts("version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the file itself: run 'git lfs pull'");
    }
    if starts("<!doctype html") || starts("<html") {
        return Some("it is a web page, which a server sent instead of the file: fetch it again");
    }
    if start.starts_with(b"PK\x03\x04") {
        return Some("it is a zip archive, as PyTorch's pickles are: call it pytorch_model.bin");
    }
    if start.starts_with(b"GGUF") {
        return Some("it is a GGUF file: the model is needed as safetensors");
    }
    None
}

/// Opens the regular file at `path`.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), ModelError> {
    // Asked before it is opened: opening a pipe would wait for its other end, and opening a device
    // can have an effect.
    regular(path, &std::fs::metadata(path).map_err(|error| why_not(path, error))?)?;
    let file = File::open(path).map_err(|error| why_not(path, error))?;
    // And of what was opened, should it have been exchanged in between.
    let metadata = file.metadata().map_err(|error| ModelError::io(path, error))?;
    regular(path, &metadata)?;
    Ok((file, metadata))
}

fn regular(path: &Path, metadata: &Metadata) -> Result<(), ModelError> {
    match other_kind(metadata) {
        Some(found) => Err(ModelError::NoFile { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// What it is if it is no regular file.
pub(super) fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    match metadata.file_type() {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a folder"),
        kind => Some(special(kind)),
    }
}

#[cfg(unix)]
fn special(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "something else",
    }
}

#[cfg(not(unix))]
fn special(_: std::fs::FileType) -> &'static str {
    "something else"
}

/// Why `path` couldn't be opened: nothing has the name, or a link on the way leads nowhere.
fn why_not(path: &Path, error: io::Error) -> ModelError {
    if error.kind() != io::ErrorKind::NotFound {
        return ModelError::io(path, error);
    }
    // The nearest part of the path that is there: if it is a link, its target is what is missing.
    let there = path.ancestors().find_map(|part| part.symlink_metadata().ok().map(|it| (part, it)));
    match there {
        Some((link, metadata)) if metadata.is_symlink() && !link.exists() => {
            let (link, target) = last_link(link.to_owned());
            ModelError::DanglingLink { path: path.to_owned(), link, target }
        }
        _ => ModelError::MissingFile { path: path.to_owned() },
    }
}

/// The last of the links that begin with `link`, and its target.
fn last_link(mut link: PathBuf) -> (PathBuf, PathBuf) {
    const MOST: usize = 40; // what Linux follows
    for _ in 0..MOST {
        let Ok(target) = std::fs::read_link(&link) else { break };
        let next = link.parent().unwrap_or(Path::new("")).join(&target);
        if !next.is_symlink() {
            return (link, target);
        }
        link = next;
    }
    (link, PathBuf::new())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_has_at_most_so_many_bytes() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        let error = read_file(&path, 4).unwrap_err();
        assert!(matches!(error, ModelError::TooLarge { limit: 4, found: 5, .. }), "{error}");
        assert!(has_file(&path).unwrap());
    }

    #[test]
    fn only_what_nothing_has_the_name_of_is_missing() {
        let folder = tempfile::TempDir::new().unwrap();
        let missing = folder.path().join("missing");
        assert!(matches!(read_file(&missing, 9), Err(ModelError::MissingFile { .. })));
        assert_eq!(read_optional_file(&missing, 9).unwrap(), None);
        assert!(!has_file(&missing.join("below")).unwrap());
        let error = read_optional_file(folder.path(), 9).unwrap_err();
        assert!(matches!(error, ModelError::NoFile { found: "a folder", .. }), "{error}");
        fs::write(folder.path().join("file"), b"").unwrap();
        let empty = read_optional_file(&folder.path().join("file"), 9).unwrap_err();
        assert!(matches!(empty, ModelError::StandIn { .. }), "{empty}");
        let below = read_optional_file(&folder.path().join("file/below"), 9).unwrap_err();
        assert!(matches!(below, ModelError::Io { .. }), "{below}");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_named_with_their_targets() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("../../blobs/0000", at("direct")).unwrap();
        symlink("direct", at("twice")).unwrap();
        symlink("nowhere", at("folder")).unwrap();
        for (name, target) in [
            ("direct", "blobs/0000"),
            ("twice", "direct to '../../blobs/0000'"),
            ("folder/config.json", "nowhere"),
        ] {
            let message = read_optional_file(&at(name), 9).unwrap_err().to_string();
            assert!(message.contains(target) && message.contains("not there"), "{message}");
            assert!(has_file(&at(name)).is_err(), "{name}");
        }
        symlink("circle", at("circle")).unwrap();
        assert!(matches!(has_file(&at("circle")), Err(ModelError::Io { .. })));
        fs::write(at("file"), b"12").unwrap();
        symlink("file", at("good")).unwrap();
        assert_eq!(read_file(&at("good"), 2).unwrap(), b"12");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_sockets_and_devices_are_not_opened() {
        let folder = tempfile::TempDir::new().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let socket = folder.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let device = Path::new("/dev/zero").to_owned();
        for (path, kind) in [(pipe, "a pipe"), (socket, "a socket"), (device, "a device")] {
            let message = read_optional_file(&path, 9).unwrap_err().to_string();
            assert!(message.contains(kind), "{message}");
        }
    }
}
