//! Figures with their origin: the command, the machine and the date.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;
use serde::Serialize;

/// Where figures come from.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// The command line, without the folder of the program.
    pub command: String,
    /// What the system calls the processor, where it tells.
    pub processor: Option<String>,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// A result as it is kept.
#[derive(Debug, Serialize)]
struct Result<'a, T> {
    device: &'a str,
    #[serde(flatten)]
    origin: Origin,
    figures: &'a T,
}

impl Origin {
    /// Of figures that were made just now.
    pub fn now() -> Self {
        let unix_seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { command: command(), processor: processor(), unix_seconds }
    }
}

/// Writes `figures` to `file`, if there is one.
pub fn write<T: Serialize>(
    file: Option<&Path>,
    device: &str,
    figures: &T,
) -> std::result::Result<(), Box<dyn Error>> {
    let Some(file) = file else { return Ok(()) };
    fs::write(file, json(device, figures)?)?;
    Ok(())
}

/// `figures` as they are kept.
pub fn json<T: Serialize>(device: &str, figures: &T) -> serde_json::Result<String> {
    let result = Result { device, origin: Origin::now(), figures };
    Ok(serde_json::to_string_pretty(&result)? + "\n")
}

/// The command line, without the folder that the program happens to be in.
fn command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(program) = words.first_mut()
        && let Some(name) = Path::new(program).file_stem()
    {
        *program = name.to_string_lossy().into_owned();
    }
    words.join(" ")
}

fn processor() -> Option<String> {
    let facts = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = facts.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Prints a line of a table.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Says what belongs to no result.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}"); // nobody is left to be told
}

/// Says what went wrong.
pub fn complain(error: &dyn Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error}"); // nobody is left to be told
}

/// The whole part of a number; 0 of one below that.
pub fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_sign_loss, reason = "such casts saturate")]
    let whole = value as u64;
    whole
}

/// A number of things for people: `12,500`.
pub fn count(things: usize) -> String {
    HumanCount(things as u64).to_string()
}

/// A number for people: three digits or more, `0.125`, `12.5`, `12,500`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    match value.abs() {
        size if size >= 999.5 => HumanCount(whole(value.round())).to_string(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
