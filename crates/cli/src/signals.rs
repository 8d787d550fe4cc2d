//! Signals: what each does to a command that has begun its work. docs/running.md has the table.
//!
//! A thread of its own hears them, whatever the others wait for: that standard output takes more, say.
//! The first one that means "stop" asks the command to, the second to stop at once.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// Begins to listen. The receivers hear of the first signal to stop and of the second. The process
/// ends at the second if nobody listens for that, at the third in any case, and `patience` after the
/// first, where there is one.
///
/// # Errors
/// When the system refuses the handlers or the thread.
pub(crate) fn listen(patience: Option<Duration>) -> io::Result<[oneshot::Receiver<()>; 2]> {
    let (sender, first) = oneshot::channel();
    let (sender_of_second, second) = oneshot::channel();
    let (ready, begun) = sync_channel(1);
    let hear = async move |mut signals: Signals| {
        let signal = signals.stop().await;
        tracing::info!(signal, "asked to stop");
        // A command that does not listen any more is about to end anyway.
        let _ = sender.send(());
        let again = async {
            signals.stop().await;
            if sender_of_second.send(()).is_ok() {
                signals.stop().await;
            }
        };
        match patience {
            Some(patience) => drop(tokio::time::timeout(patience, again).await),
            None => again.await,
        }
        end_now();
    };
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let signals = Signals::new()?;
                let _ = ready.send(Ok(()));
                hear(signals).await;
                Ok(())
            })
        });
        if let Err(error) = outcome {
            let _ = ready.send(Err(error));
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(work)?;
    begun
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that hears signals ended")))?;
    Ok([first, second])
}

/// Makes a write past the process's limit of file sizes (`ulimit -f`) an error like that of a full
/// disk. Without it the system ends the process there, without a word.
#[cfg(unix)]
pub(crate) fn report_large_files() {
    const SIGXFSZ: i32 = 25; // on Linux and macOS
    // Whatever handles the signal will do. Refused, it is as it was.
    let _ = signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default());
}

#[cfg(not(unix))]
pub(crate) fn report_large_files() {}

#[expect(clippy::disallowed_methods, reason = "whoever signals twice wants no destructors run")]
fn end_now() {
    std::process::exit(1);
}

#[cfg(unix)]
struct Signals {
    /// Those that mean "stop", with their names.
    stop: Vec<(&'static str, tokio::signal::unix::Signal)>,
    /// Those that would end the process if nobody listened to them, and shall not.
    ignored: Vec<(&'static str, tokio::signal::unix::Signal)>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |signals: Vec<(&'static str, SignalKind)>| -> io::Result<Vec<_>> {
            signals.into_iter().map(|(name, kind)| Ok((name, signal(kind)?))).collect()
        };
        let mut stop = vec![
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGQUIT", SignalKind::quit()),
        ];
        // Whoever starts a command by `nohup` wants it to outlive the terminal.
        if !is_ignored(SignalKind::hangup()) {
            stop.push(("SIGHUP", SignalKind::hangup()));
        }
        let mut ignored = vec![
            ("SIGUSR1", SignalKind::user_defined1()),
            ("SIGUSR2", SignalKind::user_defined2()),
        ];
        // A file that has become too large is the error of a write, as without room on the disk.
        #[cfg(target_os = "linux")]
        ignored.push(("SIGXFSZ", SignalKind::from_raw(25)));
        Ok(Self { stop: listen(stop)?, ignored: listen(ignored)? })
    }

    /// Waits for a signal to stop, and gives its name.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                name = any(&mut self.stop) => return name,
                name = any(&mut self.ignored) => {
                    tracing::debug!(signal = name, "a signal without an effect");
                }
            }
        }
    }
}

/// The name of the first of `signals` that comes.
#[cfg(unix)]
async fn any(signals: &mut [(&'static str, tokio::signal::unix::Signal)]) -> &'static str {
    std::future::poll_fn(|context| {
        let come = signals.iter_mut().find_map(|(name, signal)| {
            matches!(signal.poll_recv(context), std::task::Poll::Ready(Some(()))).then_some(*name)
        });
        come.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

/// Whether the process was started with this signal ignored, where the system tells.
#[cfg(unix)]
fn is_ignored(signal: tokio::signal::unix::SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let place = u32::try_from(signal.as_raw_value() - 1).unwrap_or(u32::MAX);
    mask.checked_shr(place).unwrap_or_default() & 1 == 1
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn stop(&mut self) -> &'static str {
        let _ = self.0.recv().await;
        "Ctrl-C"
    }
}
