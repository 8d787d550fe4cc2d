//! Tokenising alone: texts to ids, as the engine does it, on some threads.
//!
//! The choice behind it: texts are counted per second of processor time, so that neighbours on the
//! machine hardly matter.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use vecmill_engine::{RequestError, Tokenizer, Truncation};
use vecmill_lab::results;
use vecmill_lab::results::number;
use vecmill_model::disk;

use crate::Outcome;
use crate::load::processor_seconds;
use crate::texts::TextKind;

/// Texts that are made, enough that none comes twice soon.
const TEXTS: usize = 16_384;

/// The most of a file that is read.
const LIMIT: u64 = 1 << 30;

/// Arguments of `vecmill-bench tokenize`.
#[derive(Debug, Args)]
pub(crate) struct TokenizeArguments {
    #[command(flatten)]
    kind: TextKind,
    /// File with texts to take instead, one JSON object per line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Threads; several numbers are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Seconds before counting starts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Line {
    text: String,
}

/// What was done, in what time.
#[derive(Debug, Serialize)]
struct Speed {
    threads: usize,
    texts: usize,
    tokens: usize,
    seconds: f64,
    processor_seconds: f64,
    texts_per_processor_second: f64,
    tokens_per_processor_second: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    texts: usize,
    tokens: usize,
}

/// Measures and prints a table.
pub(crate) fn run(arguments: &TokenizeArguments) -> Outcome {
    let texts = match &arguments.texts {
        Some(file) => read(file)?,
        None => arguments.kind.write(TEXTS)?,
    };
    let mut speeds = Vec::new();
    for &threads in &arguments.threads {
        let speed = measure(arguments, &texts, threads.max(1))?;
        results::line(&format!(
            "{threads:>3} threads: {:>10} texts/s, {:>10} tokens/s per core ({} texts in {} s)",
            number(speed.texts_per_processor_second),
            number(speed.tokens_per_processor_second),
            results::count(speed.texts),
            number(speed.seconds),
        ))?;
        speeds.push(speed);
    }
    results::write(arguments.json.as_deref(), "cpu", &speeds)
}

/// The texts of a file of JSON objects, one a line.
pub(crate) fn read(file: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let lines = disk::read_regular(file, LIMIT).map_err(|e| format!("{}: {e}", file.display()))?;
    let lines = String::from_utf8(lines).map_err(|e| format!("{}: {e}", file.display()))?;
    let text = |line| Ok(serde_json::from_str::<Line>(line)?.text);
    let texts = lines.lines().map(text).collect::<Result<Vec<_>, serde_json::Error>>();
    match texts.map_err(|e| format!("{}: {e}", file.display()))? {
        texts if texts.is_empty() => Err(format!("{}: expected texts", file.display()).into()),
        texts => Ok(texts),
    }
}

fn measure(
    arguments: &TokenizeArguments,
    texts: &[String],
    threads: usize,
) -> Result<Speed, Box<dyn Error>> {
    let tokenizer = Tokenizer::of_model(&arguments.kind.model)?;
    tokenize(&tokenizer, texts, threads, Duration::try_from_secs_f64(arguments.warm_up)?)?;
    let time = Duration::try_from_secs_f64(arguments.seconds)?;
    let (begin, before) = (Instant::now(), processor_seconds("self"));
    let Count { texts, tokens } = tokenize(&tokenizer, texts, threads, time)?;
    let (seconds, after) = (begin.elapsed().as_secs_f64(), processor_seconds("self"));
    let spent = before.zip(after).map(|(before, after)| after - before);
    let processor_seconds = spent.unwrap_or(seconds * threads as f64);
    Ok(Speed {
        threads,
        texts,
        tokens,
        seconds,
        processor_seconds,
        texts_per_processor_second: texts as f64 / processor_seconds,
        tokens_per_processor_second: tokens as f64 / processor_seconds,
    })
}

/// Each thread goes round through all texts, from a place of its own, until the time is over.
fn tokenize(
    tokenizer: &Tokenizer,
    texts: &[String],
    threads: usize,
    time: Duration,
) -> Result<Count, RequestError> {
    let begin = Instant::now();
    let work = |thread: usize| {
        let mut count = Count::default();
        for text in texts.iter().cycle().skip(thread * texts.len() / threads) {
            count.texts += 1;
            count.tokens += tokenizer.ids(text, Truncation::End)?.len();
            if begin.elapsed() >= time {
                break;
            }
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut all = Count::default();
        for thread in threads {
            let count = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            all.texts += count.texts;
            all.tokens += count.tokens;
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_begins_at_a_place_of_its_own() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/bert-mean");
        let tokenizer = Tokenizer::of_model(&model).unwrap();
        let texts = ["and", "and be", "and be con", "and be con and"].map(str::to_owned);
        let count = tokenize(&tokenizer, &texts, 2, Duration::ZERO).unwrap();
        let special = 2;
        assert_eq!((count.texts, count.tokens), (2, 1 + special + 3 + special));
    }
}
