//! The log on standard error, and the last word of a command that failed.

use std::io::{self, IsTerminal, Write, stderr};
use std::sync::OnceLock;

use tracing_subscriber::fmt::MakeWriter;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::settings::LogFilter;

/// Whether the log is JSON lines, once it has been started.
static JSON: OnceLock<bool> = OnceLock::new();

/// Starts the log, beside the progress bars.
pub(crate) fn start(filter: &LogFilter, json: bool, progress: &Progress, warnings: &[String]) {
    // NO_COLOR: https://no-color.org
    let colours =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.filter())
        .with_writer(BesideBars(progress.clone()))
        .with_ansi(colours);
    let started = if json { log.json().try_init() } else { log.with_target(false).try_init() };
    if started.is_ok() {
        let _ = JSON.set(json);
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Says why the command failed, in the form of the log. Nobody is left to tell if that fails too.
pub(crate) fn report(failure: &Failure) {
    if failure.is_closed_pipe() {
        return;
    }
    if JSON.get().copied().unwrap_or_default() {
        tracing::error!("{failure}");
    } else {
        let _ = writeln!(stderr().lock(), "vecmill: {failure}");
    }
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
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.above_bars(|| stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().lock().flush()
    }
}
