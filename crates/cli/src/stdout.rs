//! Standard output: results, and nothing else.
//!
//! Written to by its descriptor rather than through [`std::io::stdout`], which calls a descriptor that
//! can't be written a success.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::failure::Failure;
use crate::patient::Patient;

/// Standard output, buffered.
pub(crate) type Stdout = BufWriter<Patient<File>>;

/// Opens it. What is written is there once it is flushed.
///
/// # Errors
/// When the system has no descriptor to give.
pub(crate) fn open() -> io::Result<Stdout> {
    #[cfg(unix)]
    let own = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
    #[cfg(windows)]
    let own = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned()?;
    Ok(BufWriter::new(Patient(own.into())))
}

/// Has all of a result written.
pub(crate) fn write(result: impl FnOnce(&mut Stdout) -> io::Result<()>) -> Result<(), Failure> {
    let all = |mut out: Stdout| result(&mut out).and_then(|()| out.flush());
    open().and_then(all).map_err(Failure::Stdout)
}
