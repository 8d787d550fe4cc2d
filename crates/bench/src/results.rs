//! Figures with their origin: the command, the machine and the date.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// A result as it is kept.
#[derive(Debug, Serialize)]
struct Result<'a, T> {
    command: String,
    device: &'a str,
    processor: Option<String>,
    unix_seconds: u64,
    figures: &'a T,
}

/// Writes `figures` to `file`, if there is one.
pub(crate) fn write<T: Serialize>(
    file: Option<&Path>,
    device: &str,
    figures: &T,
) -> std::result::Result<(), Box<dyn Error>> {
    let Some(file) = file else { return Ok(()) };
    let unix_seconds =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let result =
        Result { command: command(), device, processor: processor(), unix_seconds, figures };
    fs::write(file, serde_json::to_string_pretty(&result)? + "\n")?;
    Ok(())
}

/// The command line, without the folder that the program happens to be in.
fn command() -> String {
    let program = "vecmill-bench".to_owned();
    std::iter::once(program).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

fn processor() -> Option<String> {
    let facts = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = facts.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Prints a line of a table.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Says what went wrong.
pub(crate) fn complain(error: &dyn Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error}"); // nobody is left to be told
}

/// The whole part of a number; 0 of one below that.
pub(crate) fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_sign_loss, reason = "such casts saturate")]
    let whole = value as u64;
    whole
}

/// The values below which so many per cent of the samples lie. Sorts the samples.
pub(crate) fn percentile(samples: &mut [u64], per_cent: f64) -> u64 {
    samples.sort_unstable();
    let index = whole(samples.len() as f64 * per_cent / 100.0) as usize;
    samples.get(index.min(samples.len().saturating_sub(1))).copied().unwrap_or(0)
}
