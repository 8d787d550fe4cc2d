//! Writing to what may not be ready.
//!
//! A pipe or a terminal can be set not to block, by whoever shares it. Then "not now" is no failure.

use std::io::{self, ErrorKind, Write};

/// Writes, and waits where that is what it takes.
#[derive(Debug)]
pub(crate) struct Patient<W>(pub(crate) W);

#[cfg(unix)]
impl<W: Write + std::os::fd::AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(unix)]
impl<W: std::os::fd::AsFd> Patient<W> {
    /// Until there is room, or nobody left to make some.
    fn wait(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut wanted = [PollFd::new(&self.0, PollFlags::OUT)];
        match poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(not(unix))]
impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
