//! Progress on standard error: bars on a terminal, a line in the log for each step elsewhere.
//!
//! Bars are drawn by [`stderr`](crate::stderr) like all else, so a terminal that is held (Ctrl-S) does
//! not hold the work.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use indicatif::{
    BinaryBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
    TermLike,
};
use vecmill_engine::Stage;

use crate::stderr::{await_room, say, show};

/// The progress of one command. Clones share the bars.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    on_terminal: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn new() -> Self {
        let on_terminal = io::stderr().is_terminal();
        let target = if on_terminal {
            ProgressDrawTarget::term_like(Box::new(Terminal::default()))
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { bars: MultiProgress::with_draw_target(target), on_terminal }
    }

    /// Does what `write` does with the bars out of the way.
    pub(crate) fn above_bars<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bars.suspend(write)
    }

    /// Writes a line for the user, whatever the log's level.
    pub(crate) fn say(&self, line: impl fmt::Display) {
        self.above_bars(|| say(format!("{line}\n")));
    }

    /// As [`say`](Self::say), but waits for a slow reader rather than lose the line: for what belongs
    /// to a command's result.
    pub(crate) fn report(&self, line: impl fmt::Display) {
        await_room();
        self.say(line);
    }

    /// Shows the stages of an engine's start, or of a conversion.
    pub(crate) fn of_start(&self) -> Arc<dyn Fn(Stage) + Send + Sync> {
        let progress = self.clone();
        let steps = Mutex::new(BTreeMap::new());
        Arc::new(move |stage| {
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            progress.show(&mut steps, stage);
        })
    }

    fn show(&self, steps: &mut BTreeMap<String, ProgressBar>, stage: Stage) {
        let (name, done, total, bytes) = match stage {
            Stage::Fetching { file, done, total } => {
                (format!("fetching {file}"), done, total, true)
            }
            Stage::Waiting { reason, wait } => {
                let seconds = wait.as_secs_f32().ceil();
                self.say(format_args!("{reason}; trying again in {seconds} s"));
                return;
            }
            Stage::Loading { done, total } => {
                ("loading weights".to_owned(), done as u64, Some(total as u64), false)
            }
            Stage::Converting { done, total } => {
                ("converting weights".to_owned(), done, Some(total), true)
            }
            Stage::WarmingUp { device, done, total } => {
                (format!("warming up {device}"), done as u64, Some(total as u64), false)
            }
            _ => {
                steps.values().for_each(ProgressBar::finish_and_clear);
                return;
            }
        };
        let bar = steps.entry(name).or_insert_with_key(|name| self.begin(name, total, bytes));
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
        if total == Some(done) {
            bar.finish_and_clear();
        }
    }

    fn begin(&self, name: &str, total: Option<u64>, bytes: bool) -> ProgressBar {
        if !self.on_terminal {
            let size = total.map(|total| match bytes {
                true => format!(" ({})", BinaryBytes(total)),
                false => format!(" ({} steps)", HumanCount(total)),
            });
            tracing::info!("{name}{}", size.unwrap_or_default());
            return ProgressBar::hidden();
        }
        let count = match (total.is_some(), bytes) {
            (true, true) => "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            (false, true) => "{spinner} {binary_bytes} {binary_bytes_per_sec}",
            (true, false) => "{bar:30} {pos}/{len}",
            (false, false) => "{spinner} {pos}",
        };
        self.bar(total, &format!("{{msg}} {count}")).with_message(name.to_owned())
    }

    fn bar(&self, total: Option<u64>, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        self.bars.add(bar.with_style(style))
    }

    /// A bar for the measurements of an experiment.
    pub(crate) fn of_passes(&self) -> ProgressBar {
        let template = "{bar:30} {pos}/{len} {msg}, {eta} left";
        if self.on_terminal { self.bar(Some(0), template) } else { ProgressBar::hidden() }
    }

    /// A counter of texts; `total` bytes of them are to come, if that is known.
    pub(crate) fn of_texts(&self, total: Option<u64>, shown: bool) -> Texts {
        let template = match total {
            Some(_) => "embedding {bar:30} {percent}% {msg}, {eta} left",
            None => "embedding {spinner} {msg}",
        };
        let visible = self.on_terminal && shown;
        let bar = if visible { self.bar(total, template) } else { ProgressBar::hidden() };
        Texts { bar, began: Instant::now(), count: 0 }
    }
}

/// The terminal, as far as bars need one: what is drawn is shown whole at each flush.
#[derive(Debug, Default)]
struct Terminal(Mutex<String>);

impl Terminal {
    fn add(&self, text: impl fmt::Display) -> io::Result<()> {
        use fmt::Write;
        let mut drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(drawn, "{text}").map_err(io::Error::other)
    }
}

/// By the control sequences of ECMA-48.
impl TermLike for Terminal {
    fn width(&self) -> u16 {
        #[cfg(unix)]
        let columns = rustix::termios::tcgetwinsize(io::stderr()).ok().map(|size| size.ws_col);
        #[cfg(not(unix))]
        let columns = None;
        columns.filter(|&columns| columns > 0).unwrap_or(80)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        if n > 0 { self.add(format_args!("\x1b[{n}A")) } else { Ok(()) }
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        if n > 0 { self.add(format_args!("\x1b[{n}B")) } else { Ok(()) }
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        if n > 0 { self.add(format_args!("\x1b[{n}C")) } else { Ok(()) }
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        if n > 0 { self.add(format_args!("\x1b[{n}D")) } else { Ok(()) }
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        show(std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into());
        Ok(())
    }
}

/// Counts texts as they are done.
#[derive(Debug)]
pub(crate) struct Texts {
    bar: ProgressBar,
    began: Instant,
    count: u64,
}

impl Texts {
    /// One more text is done, which took so many bytes of the input.
    pub(crate) fn done(&mut self, bytes: u64) {
        self.count += 1;
        if !self.bar.is_hidden() {
            self.bar.inc(bytes);
            self.bar.set_message(self.to_string());
        }
    }

    /// Texts done so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        let rate = self.count as f64 / seconds;
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "{} text{plural}, {rate:.0} texts/s", HumanCount(self.count))
    }
}
