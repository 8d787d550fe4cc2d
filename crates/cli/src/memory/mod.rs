//! `vecmill memory`: what was asked of a device's memory, and what ways of managing it make of that.
//!
//! [`counted`] shows how far a replay is; [`report`] writes JSON. Replaying, table and picture are
//! those of `vecmill_memory`.

mod counted;
mod report;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write, stdin};
use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use vecmill_memory::replay::{
    Comparison, Manager, Naive, Options, PerTensor, Pooled, WatchedPool, compare,
};
use vecmill_memory::trace::Trace;
use vecmill_memory::{PoolSettings, SimulatedDevice};

use crate::arguments::{MemoryArguments, MemoryCommand, Policy, ReplayArguments};
use crate::failure::Failure;
use crate::new_file::{check_writable, write_whole};
use crate::progress::Progress;
use crate::stdout;
use crate::units::bytes;
use counted::Counted;

/// The simulated device's memory when there is no budget: more than any device has.
const BOUNDLESS: usize = 1 << 40;

/// Events from which on a replay takes long enough to show how far it is.
const MANY_EVENTS: usize = 50_000;

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &MemoryArguments, progress: &Progress) -> Result<(), Failure> {
    let MemoryCommand::Replay(arguments) = &arguments.command;
    replay(arguments, progress)
}

fn replay(arguments: &ReplayArguments, progress: &Progress) -> Result<(), Failure> {
    if let Some(path) = &arguments.svg {
        check_writable(path)?;
    }
    let trace = read(&arguments.trace)?;
    if trace.lost > 0 {
        let lost = HumanCount(trace.lost);
        progress
            .say(format_args!("vecmill: the trace lacks {lost} events that it had no room for"));
    }
    let comparison = compared(&trace, arguments, progress);
    if let Some(path) = &arguments.svg {
        write_whole(path, comparison.svg().as_bytes())
            .map_err(|source| Failure::Write { path: path.clone(), source })?;
    }
    stdout::write(|out| write(out, arguments, &trace, &comparison))
}

fn read(path: &Path) -> Result<Trace, Failure> {
    let (path, input): (PathBuf, Box<dyn BufRead>) = if path == Path::new("-") {
        ("standard input".into(), Box::new(stdin().lock()))
    } else {
        let file = File::open(path);
        let file = file.map_err(|source| Failure::Read { path: path.to_owned(), source })?;
        (path.to_owned(), Box::new(BufReader::with_capacity(1 << 16, file)))
    };
    Trace::read(input).map_err(|source| Failure::Trace { path, source })
}

fn compared(trace: &Trace, arguments: &ReplayArguments, progress: &Progress) -> Comparison {
    let budget = arguments.budget.map(|budget| budget.0);
    let memory = budget.unwrap_or(BOUNDLESS);
    let settings = PoolSettings { give_back: arguments.give_back.0, ..PoolSettings::default() };
    let device = SimulatedDevice::new(memory);
    let pool = WatchedPool::new(device.clone(), memory, settings);
    // Memory that is taken by itself, as the others do, stays as large as it is.
    let fixed = || SimulatedDevice::new(memory).in_place(false);
    let mut managers: Vec<Box<dyn Manager + '_>> = Vec::new();
    let mut chosen: Vec<Policy> = Vec::new();
    for &policy in &arguments.policy {
        if chosen.contains(&policy) {
            continue;
        }
        chosen.push(policy);
        let device = device.clone();
        managers.push(match policy {
            Policy::Pool => Box::new(Pooled::new(&pool, move |_| device.stream())),
            Policy::Naive => Box::new(Naive::new(fixed())),
            Policy::Direct => Box::new(PerTensor::new(fixed())),
        });
    }
    let options = Options { budget, ..Options::default() };
    let events = trace.events.len() * managers.len();
    let bar = progress.of_events(events as u64, events >= MANY_EVENTS);
    let mut counted: Vec<Counted<'_>> =
        managers.into_iter().map(|manager| Counted::new(manager, bar.clone())).collect();
    let mut managers: Vec<&mut dyn Manager> =
        counted.iter_mut().map(|manager| manager as &mut dyn Manager).collect();
    let comparison = compare(trace, &mut managers, &options);
    bar.finish_and_clear();
    comparison
}

fn write(
    out: &mut impl Write,
    arguments: &ReplayArguments,
    trace: &Trace,
    comparison: &Comparison,
) -> io::Result<()> {
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &report::json(trace, comparison))?;
        writeln!(out)
    } else {
        writeln!(out, "{}\n\n{}", heading(trace, comparison), comparison.table().trim_end())
    }
}

/// What was replayed, in a line.
fn heading(trace: &Trace, comparison: &Comparison) -> String {
    let events = HumanCount(trace.events.len() as u64);
    let seconds = comparison.nanoseconds as f64 / 1e9;
    let streams = comparison.streams.len();
    let plural = if streams == 1 { "" } else { "s" };
    let budget = comparison.budget.map(|budget| format!(", with {}", bytes(budget)));
    let budget = budget.unwrap_or_default();
    format!("{events} events in {seconds:.1} s on {streams} stream{plural}{budget}")
}
