//! The log, panics, and the last word of a command that failed: all by `stderr`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::settings::LogFilter;
use crate::stderr::{self, say};

/// Whether the log is JSON lines, once it has been started.
static JSON: OnceLock<bool> = OnceLock::new();

/// Whether a panic is the end of the process.
static FATAL: AtomicBool = AtomicBool::new(false);

/// How long a panic waits for its words to be written: the process may be aborted right after it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Starts the log, beside the progress bars.
pub(crate) fn start(filter: &LogFilter, json: bool, progress: &Progress, warnings: &[String]) {
    // NO_COLOR: https://no-color.org
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.filter())
        .with_writer(BesideBars(progress.clone()))
        // It would print them, and panic if it can't.
        .log_internal_errors(false)
        .with_ansi(colours);
    let started = if json { log.json().try_init() } else { log.with_target(false).try_init() };
    if started.is_ok() {
        let _ = JSON.set(json);
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Has panics reported like the rest: as the language does it, a thread that panics would wait for
/// whoever reads standard error.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(report_panic));
}

fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Taken if RUST_BACKTRACE asks for it.
    let backtrace = Some(Backtrace::capture());
    let backtrace = backtrace.filter(|trace| trace.status() == BacktraceStatus::Captured);
    let backtrace = backtrace.map(|trace| trace.to_string());
    if is_json() {
        tracing::error!(thread, backtrace, "{panic}");
    } else {
        say(format!("vecmill: thread '{thread}' {panic}\n{}", backtrace.unwrap_or_default()));
    }
    stderr::wait(LAST_WORDS);
    if FATAL.load(Ordering::Relaxed) {
        end_now();
    }
}

/// Does what can only succeed or end the process: a runtime that gets no thread panics, and then
/// waits for ever for the threads that it has.
pub(crate) fn or_end<R>(begin: impl FnOnce() -> R) -> R {
    FATAL.store(true, Ordering::Relaxed);
    let begun = begin();
    FATAL.store(false, Ordering::Relaxed);
    begun
}

#[expect(clippy::disallowed_methods, reason = "unwinding is what would hang")]
fn end_now() {
    std::process::exit(1);
}

/// Says why the command failed, in the form of the log.
pub(crate) fn report(failure: &Failure) {
    if failure.is_closed_pipe() {
        return;
    }
    let words = shortened(&failure.to_string());
    if is_json() {
        tracing::error!("{words}");
    } else {
        say(format!("vecmill: {words}\n"));
    }
}

/// Without the middle of lines that nobody would read. Both ends stay: the place, and what is wrong.
fn shortened(words: &str) -> String {
    const START: usize = 600;
    const END: usize = 300;
    let line = |line: &str| {
        let count = line.chars().count();
        if count <= START + END {
            return line.to_owned();
        }
        let start: String = line.chars().take(START).collect();
        let end: String = line.chars().skip(count - END).collect();
        format!("{start} … {end}")
    };
    words.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn is_json() -> bool {
    JSON.get().copied().unwrap_or_default()
}

/// Writes above the progress bars instead of into them.
#[derive(Debug)]
struct BesideBars(Progress);

impl<'a> MakeWriter<'a> for BesideBars {
    type Writer = &'a BesideBars;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &BesideBars {
    /// Takes a whole event: it comes in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.above_bars(|| say(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_lose_their_middle_only() {
        let words = format!("two lines\nport '{}': expected a port", "é".repeat(100_000));
        let short = shortened(&words);
        assert!(short.len() < 3_000 && short.starts_with("two lines\nport 'é"), "{short}");
        assert!(short.ends_with("': expected a port"));
        assert_eq!(shortened("short\n"), "short\n");
    }
}
