//! Files that are complete or not there.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::failure::Failure;

/// A file that gets its name when it is complete, and goes away if that never comes.
#[derive(Debug)]
pub(crate) struct NewFile(BufWriter<NamedTempFile>);

impl NewFile {
    /// Begins the file that is to be called `path`.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".vecmill-").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // What any new file gets; temporary ones would be private.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        Ok(Self(BufWriter::with_capacity(1 << 16, builder.tempfile_in(folder_of(path))?)))
    }

    /// Ends the file and gives it its name, in the place of what has that name already.
    pub(crate) fn finish(self, path: &Path) -> io::Result<()> {
        let file = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|refused| refused.error)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a file that can't be written before what goes into it is waited for.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let kind = match path {
        path if path.is_dir() => io::ErrorKind::IsADirectory,
        path if !folder_of(path).is_dir() => io::ErrorKind::NotFound,
        _ => return Ok(()),
    };
    Err(Failure::Write { path: path.to_owned(), source: kind.into() })
}

/// Writes a whole file.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    // What a link points to is replaced, not the link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = NewFile::create(&path)?;
    file.write_all(contents)?;
    file.finish(&path)
}
