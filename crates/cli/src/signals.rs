//! SIGINT and SIGTERM: the first asks a command to stop, the second to stop at once.

use std::io;

use tokio::sync::oneshot;

/// Begins to listen. The receivers hear of the first signal and of the second. The process ends at
/// the second if nobody listens for that, and at the third in any case.
///
/// # Errors
/// When the system refuses the handlers.
pub(crate) fn listen() -> io::Result<[oneshot::Receiver<()>; 2]> {
    let mut signals = Signals::new()?;
    let (sender, first) = oneshot::channel();
    let (sender_of_second, second) = oneshot::channel();
    tokio::spawn(async move {
        signals.next().await;
        // A command that does not listen any more is about to end anyway.
        let _ = sender.send(());
        signals.next().await;
        if sender_of_second.send(()).is_ok() {
            signals.next().await;
        }
        end_now();
    });
    Ok([first, second])
}

#[expect(clippy::disallowed_methods, reason = "whoever signals twice wants no destructors run")]
fn end_now() {
    std::process::exit(1);
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) {
        let _ = self.0.recv().await;
    }
}
