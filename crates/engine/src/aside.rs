//! Work beside everything else, such as writing down what was observed: a disk may be slow, or never
//! answer, and no request and no end of the process waits for that.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

/// How long whoever ends waits for such work.
const FAREWELL: Duration = Duration::from_secs(1);

/// Work on a thread of its own. Dropping it waits a moment for its end, then leaves it behind.
#[derive(Debug)]
pub(crate) struct Aside(Receiver<()>);

impl Aside {
    /// Begins to do `work` on a thread called `name`.
    pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (end, ended) = sync_channel(0);
        let work = move || {
            work();
            drop(end);
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self(ended))
    }

    /// Whether it is still being done.
    pub(crate) fn is_running(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Empty)
    }

    /// Waits for its end, for at most so long; says whether it came.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.wait(FAREWELL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_that_never_ends_is_left_behind() {
        let (_never, wait) = channel::<()>();
        let stuck = Aside::start("stuck", move || wait.iter().for_each(drop)).unwrap();
        assert!(stuck.is_running() && !stuck.wait(Duration::ZERO));
        drop(stuck);
    }

    #[test]
    fn work_is_waited_for() {
        let (sender, receiver) = channel();
        drop(Aside::start("work", move || sender.send(1).unwrap()).unwrap());
        assert_eq!(receiver.try_recv(), Ok(1));
    }
}
