//! A closed loop of requests to `/v1/embeddings`: each connection sends its next request when it has
//! the reply to the last.
//!
//! - [`run`] makes all requests beforehand, drives the connections and reports.
//! - `connection` speaks HTTP, `answers` judges replies, `client` is the loop, `server` asks the
//!   server where the time went.
//!
//! The choice behind it: the generator shares the machine with the server, so it does next to
//! nothing per request, and says how much of the processor it took.

mod answers;
mod client;
mod connection;
mod report;
mod server;

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, TryFromFloatSecsError};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Outcome;
use crate::texts::TextKind;
use answers::Request;
use client::{Client, Tally};
use report::Figures;
use server::Metrics;
pub(crate) use server::processor_seconds;
use vecmill_lab::results;

/// Texts that requests are made of: enough that none comes twice soon.
const TEXTS: usize = 16_384;

/// How long replies may take beyond the measurement's end.
const GRACE: Duration = Duration::from_secs(30);

const TICK: Duration = Duration::from_millis(100);

/// Arguments of `vecmill-bench load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// Host and port of the server
    #[arg(long, default_value = "127.0.0.1:3000")]
    host: String,
    #[command(flatten)]
    kind: TextKind,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Texts of a request
    #[arg(long, default_value_t = 64)]
    texts: usize,
    /// Seconds before counting starts
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Threads that generate the load
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The server's process, to say how much of the processor it takes
    #[arg(long, value_name = "PID")]
    server: Option<u32>,
    /// Name of the measurement in the results
    #[arg(long, default_value = "")]
    name: String,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// When the load begins, and when counting starts and ends.
#[derive(Debug, Clone, Copy)]
struct Window {
    begin: Instant,
    start: Instant,
    end: Instant,
}

impl Window {
    fn from_now(arguments: &LoadArguments) -> Result<Self, TryFromFloatSecsError> {
        let begin = Instant::now();
        let start = begin + Duration::try_from_secs_f64(arguments.warm_up)?;
        Ok(Self { begin, start, end: start + Duration::try_from_secs_f64(arguments.seconds)? })
    }
}

/// The server's and the generator's state at one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    metrics: Metrics,
    server_processor: Option<f64>,
    own_processor: Option<f64>,
}

impl Look {
    fn take(arguments: &LoadArguments) -> Self {
        let server = arguments.server.map(|process| process.to_string());
        Self {
            at: Instant::now(),
            metrics: Metrics::fetch(&arguments.host),
            server_processor: server.and_then(|process| processor_seconds(&process)),
            own_processor: processor_seconds("self"),
        }
    }
}

/// Runs the load and prints what came of it. Fails if a request did.
pub(crate) fn run(arguments: &LoadArguments) -> Outcome {
    let requests = requests(arguments)?;
    let figures = drive(arguments, requests)?;
    figures.print()?;
    results::write(arguments.json.as_deref(), &arguments.host, &figures)?;
    match &figures.first_error {
        Some(error) => Err(format!("{} requests failed, first: {error}", figures.errors).into()),
        None => Ok(()),
    }
}

fn requests(arguments: &LoadArguments) -> Result<Arc<[Request]>, Box<dyn Error>> {
    let per_request = arguments.texts.max(1);
    let texts = arguments.kind.write(TEXTS.max(per_request))?;
    let requests = texts.chunks_exact(per_request).enumerate();
    Ok(requests.map(|(number, texts)| Request::new(number, &arguments.host, texts)).collect())
}

/// Runs all connections until the end of the measurement.
fn drive(arguments: &LoadArguments, requests: Arc<[Request]>) -> Result<Figures, Box<dyn Error>> {
    let (connections, texts) = (arguments.connections.max(1), requests.len());
    let threads = arguments.threads.clamp(1, connections);
    let window = Window::from_now(arguments)?;
    let client = Client { host: arguments.host.as_str().into(), requests, window };
    let (tallies, finished) = mpsc::channel();
    for thread in 0..threads {
        let mine = (thread..connections).step_by(threads);
        let starts = mine.map(|connection| connection * texts / connections).collect();
        let (client, tallies) = (client.clone(), tallies.clone());
        // If nobody receives any more, another thread has failed.
        std::thread::spawn(move || tallies.send(client.run(starts)));
    }
    drop(tallies);
    gather(arguments, window, &finished)
}

/// Waits for the threads, and looks at the server when counting starts and ends.
fn gather(
    arguments: &LoadArguments,
    window: Window,
    finished: &mpsc::Receiver<io::Result<Tally>>,
) -> Result<Figures, Box<dyn Error>> {
    let bar = progress(window)?;
    let (mut before, mut after, mut all) = (None, None, Tally::default());
    loop {
        match finished.recv_timeout(TICK) {
            Ok(tally) => all.add(tally.map_err(|e| format!("{}: {e}", arguments.host))?),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = Instant::now();
        if before.is_none() && now >= window.start {
            before = Some(Look::take(arguments));
        }
        if after.is_none() && now + TICK >= window.end {
            after = Some(Look::take(arguments));
        }
        bar.set_position(milliseconds(now - window.begin));
    }
    bar.finish_and_clear();
    Ok(Figures::new(arguments, &mut all, before.zip(after)))
}

fn progress(window: Window) -> Result<ProgressBar, Box<dyn Error>> {
    let bar = ProgressBar::new(milliseconds(window.end - window.begin));
    bar.set_style(ProgressStyle::with_template("{bar:30} {elapsed}, {eta} left")?);
    Ok(bar)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
