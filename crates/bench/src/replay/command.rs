//! `vecmill-bench replay`: what was asked of a device's memory, and what ways of managing it make of
//! that.
//!
//! What is asked is a recording's leases or, without one, those of a simulated [`day`].

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write, stdin};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use vecmill_backend_cuda::{Gpu, MappedSource, PlainSource};
use vecmill_lab::results;
use vecmill_lab::units::bytes;
use vecmill_memory::recording::Recording;
use vecmill_memory::{GiveBack, PoolSettings, Source};
use vecmill_testing::simulated::SimulatedDevice;

use super::{
    Comparison, Manager, Naive, Options, PerTensor, Pooled, WatchedPool, compare, day, json,
};
use crate::Outcome;
use crate::record::Day;

/// The budget where none is given: more memory than any device has.
const BOUNDLESS: usize = 1 << 40;

/// Events from which on a replay takes long enough to show how far it is.
const MANY_EVENTS: usize = 50_000;

const AFTER_HELP: &str = "\
Examples:
  curl -OJ 'http://127.0.0.1:3000/admin/memory/recording?device=cpu'     from vecmill serve --admin
  vecmill-bench replay vecmill-memory-cpu.csv
  vecmill-bench replay recording.csv --budget 8GiB --give-back 5m --svg memory.svg
  vecmill-bench replay recording.csv --policy pool,direct --device cuda:0
  vecmill-bench replay --model bge-large --device cuda:0

A recording says which leases were taken and returned, when, and how large they were. It is replayed in \
its own time, so that a day takes seconds, and on a device that exists only as numbers every run \
gives the same figures; only the times of 'lease+return' are of this machine. Recordings come from \
--memory-recording-on-refusal as well, and other programs can write them: they are CSV with a first line

  nanoseconds,event,id,stream,bytes

and the events lease, return and refuse.

Without a recording, a service's day is simulated, and each way of managing memory that the device has is \
asked for its batches, or tensor by tensor.";

/// Arguments of `vecmill-bench replay`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ReplayArguments {
    /// File with the recording, - for standard input [default: a simulated day]
    #[arg(conflicts_with_all = ["model", "batches", "streams", "seed", "plain_batches"])]
    recording: Option<PathBuf>,
    /// Where memory is: simulated, or a GPU such as cuda:0
    #[arg(long, default_value = "simulated")]
    device: Place,
    /// Ways of managing memory, to compare side by side
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "pool,naive,direct",
        requires = "recording"
    )]
    policy: Vec<Policy>,
    /// Most memory that each may hold, such as 8GiB [default: as much as it takes]
    #[arg(long, value_name = "SIZE", requires = "recording")]
    budget: Option<ByteSize>,
    /// When the pool gives back what is no longer needed, such as 60s or 5m, or never
    #[arg(
        long,
        value_name = "TIME",
        value_parser = give_back,
        default_value = "60s",
        requires = "recording"
    )]
    give_back: GiveBack,
    #[command(flatten)]
    day: Day,
    /// Batches of the day that go through cuMemAlloc, which takes long
    #[arg(long, default_value_t = 500)]
    plain_batches: u64,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Ways of managing memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Vecmill's own pool
    Pool,
    /// A list of buffers, first fit, never given back
    Naive,
    /// No pool: each lease is taken from the device and given back to it
    Direct,
}

/// Where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Simulated,
    Gpu(usize),
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let gpu = || text.strip_prefix("cuda:")?.parse().ok().map(Self::Gpu);
        let simulated = (text == "simulated").then_some(Self::Simulated);
        simulated.or_else(gpu).ok_or("expected simulated or a GPU such as cuda:0")
    }
}

fn give_back(text: &str) -> Result<GiveBack, humantime::DurationError> {
    if text == "never" {
        return Ok(GiveBack::Never);
    }
    humantime::parse_duration(text).map(GiveBack::After)
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &ReplayArguments) -> Outcome {
    if let Some(path) = &arguments.svg {
        check_writable(path)?;
    }
    match &arguments.recording {
        Some(path) => of_file(path, arguments),
        None => simulated_day(arguments),
    }
}

fn of_file(path: &Path, arguments: &ReplayArguments) -> Outcome {
    let recording = read(path)?;
    if recording.lost > 0 {
        let lost = HumanCount(recording.lost);
        results::say(&format!("the recording lacks {lost} events that it had no room for"));
    }
    let (comparison, device) = compared(&recording, arguments)?;
    if let Some(path) = &arguments.svg {
        write_whole(path, &comparison.svg())?;
    }
    let table = comparison.table();
    results::line(&format!("{}\n\n{}", heading(&recording, &comparison), table.trim_end()))?;
    results::write(arguments.json.as_deref(), &device, &json::of(&recording, &comparison))
}

fn simulated_day(arguments: &ReplayArguments) -> Outcome {
    let ReplayArguments { day, plain_batches, .. } = arguments;
    let gpu = match arguments.device {
        Place::Simulated => None,
        Place::Gpu(ordinal) => Some(Gpu::open(ordinal)?),
    };
    let measured = day::run(day, gpu.as_ref(), *plain_batches)?;
    if let Some(path) = &arguments.svg {
        write_whole(path, &measured.picture)?;
    }
    results::write(arguments.json.as_deref(), &name(gpu.as_ref()), &measured.rows)
}

/// What results call the device.
pub(super) fn name(gpu: Option<&Gpu>) -> String {
    gpu.map_or_else(|| "simulated device".to_owned(), |device| device.info().name.clone())
}

fn read(path: &Path) -> Result<Recording, Box<dyn Error>> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let file = File::open(path);
        let file = file.map_err(|error| format!("{} can't be read: {error}", path.display()))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    Recording::read(input).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// The ways that were asked for, compared on the device that was.
fn compared(
    recording: &Recording,
    arguments: &ReplayArguments,
) -> Result<(Comparison, String), Box<dyn Error>> {
    let (comparison, gpu) = match arguments.device {
        Place::Simulated => {
            let memory = budget(arguments).unwrap_or(BOUNDLESS);
            let device = SimulatedDevice::new(memory);
            let streams = device.clone();
            // Memory that is taken by itself stays as large as it is.
            let fixed = || SimulatedDevice::new(memory).in_place(false);
            (compared_on(recording, arguments, device, move |_| streams.stream(), fixed), None)
        }
        Place::Gpu(ordinal) => {
            let device = Gpu::open(ordinal)?;
            let source = MappedSource::new(&device)?;
            let stream = day::streams(&device)?;
            let plain = || PlainSource::new(&device);
            (compared_on(recording, arguments, source, stream, plain), Some(device))
        }
    };
    Ok((comparison, name(gpu.as_ref())))
}

/// Compares the pool over `source`, and the others each over a source of `fixed` blocks.
fn compared_on<S: Source, F: Source>(
    recording: &Recording,
    arguments: &ReplayArguments,
    source: S,
    stream: impl FnMut(u32) -> S::Stream + 'static,
    fixed: impl Fn() -> F,
) -> Comparison {
    let settings = PoolSettings { give_back: arguments.give_back, ..PoolSettings::default() };
    let pool = WatchedPool::new(source, budget(arguments).unwrap_or(BOUNDLESS), settings);
    let mut pooled = Some(Pooled::new(&pool, stream));
    let mut managers: Vec<Box<dyn Manager + '_>> = Vec::new();
    let mut chosen: Vec<Policy> = Vec::new();
    for &policy in &arguments.policy {
        if chosen.contains(&policy) {
            continue;
        }
        chosen.push(policy);
        match policy {
            Policy::Pool => {
                let pooled = pooled.take();
                managers.extend(pooled.map(|pooled| Box::new(pooled) as Box<dyn Manager>));
            }
            Policy::Naive => managers.push(Box::new(Naive::new(fixed()))),
            Policy::Direct => managers.push(Box::new(PerTensor::new(fixed()))),
        }
    }
    let progress = bar(recording.events.len() * managers.len());
    let options = Options { budget: budget(arguments), progress, ..Options::default() };
    let mut managers: Vec<&mut dyn Manager> =
        managers.iter_mut().map(|manager| &mut **manager as &mut dyn Manager).collect();
    let comparison = compare(recording, &mut managers, &options);
    options.progress.finish_and_clear();
    comparison
}

fn budget(arguments: &ReplayArguments) -> Option<usize> {
    arguments.budget.map(|ByteSize(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn bar(events: usize) -> ProgressBar {
    if events < MANY_EVENTS {
        return ProgressBar::hidden();
    }
    let template = "replaying {bar:30} {percent}% of {len} events, {eta} left";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(events as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What was replayed, in a line.
fn heading(recording: &Recording, comparison: &Comparison) -> String {
    let events = HumanCount(recording.events.len() as u64);
    let seconds = comparison.nanoseconds as f64 / 1e9;
    let streams = comparison.streams.len();
    let plural = if streams == 1 { "" } else { "s" };
    let budget = comparison.budget.map(|budget| format!(", with {}", bytes(budget as f64)));
    let budget = budget.unwrap_or_default();
    format!("{events} events in {seconds:.1} s on {streams} stream{plural}{budget}")
}

/// Refuses a file that can't be written before what goes into it is waited for.
fn check_writable(path: &Path) -> Outcome {
    let kind = match path {
        path if path.is_dir() => io::ErrorKind::IsADirectory,
        path if !folder_of(path).is_dir() => io::ErrorKind::NotFound,
        _ => return Ok(()),
    };
    Err(unwritten(path, &kind.into()))
}

/// Writes a whole file, or leaves what was there.
fn write_whole(path: &Path, text: &str) -> Outcome {
    // What a link points to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let written = tempfile::NamedTempFile::new_in(folder_of(&path)).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.persist(&path).map(drop).map_err(|refused| refused.error)
    });
    written.map_err(|error| unwritten(&path, &error))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn unwritten(path: &Path, error: &io::Error) -> Box<dyn Error> {
    format!("{} can't be written: {error}", path.display()).into()
}
