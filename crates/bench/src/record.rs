//! The memory recordings of a simulated service.
//!
//! The same batches make two recordings: one lease per batch, of the plan's peak, as the pool is asked;
//! and one per tensor, in the order of the forward pass, as a framework asks its allocator.

use std::error::Error;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;

use clap::Args;
use vecmill_lab::results;
use vecmill_memory::Plan;
use vecmill_memory::recording::{Event, Recording, What};

use crate::Outcome;
use crate::dummy::{BATCH_TOKENS, Planner, Size};
use crate::workload::{Run, Workload};

/// Ids of a batch's tensors follow each other from its number times this on.
pub(crate) const TENSORS_PER_BATCH: u64 = 1 << 16;

/// Arguments of `vecmill-bench record`.
#[derive(Debug, Args)]
pub(crate) struct RecordArguments {
    #[command(flatten)]
    pub(crate) day: Day,
    /// Folder for batches.csv and tensors.csv
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The service to simulate.
#[derive(Debug, Clone, Args)]
pub(crate) struct Day {
    /// The model's shape
    #[arg(long, value_enum, default_value = "minilm")]
    pub(crate) model: Size,
    /// Batches
    #[arg(long, default_value_t = 10_000)]
    pub(crate) batches: usize,
    /// Batches in flight
    #[arg(long, default_value_t = 3)]
    pub(crate) streams: u32,
    /// The same seed makes the same traffic
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// A day's recordings.
#[derive(Debug)]
pub(crate) struct Recordings {
    pub(crate) batches: Recording,
    pub(crate) tensors: Recording,
}

impl Recordings {
    pub(crate) fn record(day: &Day) -> Result<Self, Box<dyn Error>> {
        let planner = Planner::new(day.model)?;
        let runs = Workload {
            seed: day.seed,
            batches: day.batches,
            streams: day.streams,
            batch_tokens: BATCH_TOKENS,
            longest: 512,
            seconds: 0.001,
            seconds_per_token: 1.0 / day.model.tokens_per_second(),
        }
        .run();
        let batches = recording(&runs, |run, id, events| {
            let bytes = planner.bucketed(run.shape);
            events.push((run.start, What::Lease { id, stream: run.stream, bytes }));
            events.push((run.end, What::Return { id }));
        });
        let tensors = recording(&runs, |run, id, events| {
            tensors_of(&planner.exact(run.shape), run, id * TENSORS_PER_BATCH, events);
        });
        Ok(Self { batches, tensors })
    }
}

fn recording(runs: &[Run], mut add: impl FnMut(&Run, u64, &mut Vec<(u64, What)>)) -> Recording {
    let mut events = Vec::new();
    for (run, id) in runs.iter().zip(1..) {
        add(run, id, &mut events);
    }
    // Stable, and a tensor's return comes before the next step's leases: frameworks free first.
    events.sort_by_key(|(at, what)| (*at, !matches!(what, What::Return { .. })));
    let event = |(nanoseconds, what)| Event { nanoseconds, what };
    Recording { events: events.into_iter().map(event).collect(), lost: 0 }
}

/// The tensors of a batch, each taken at its first step and given back behind its last one.
fn tensors_of(plan: &Plan, run: &Run, first: u64, events: &mut Vec<(u64, What)>) {
    let last = plan.buffers().iter().map(|buffer| *buffer.steps.end()).max().unwrap_or(0);
    let at = |step: usize| {
        let part = step as f64 / (last + 1) as f64;
        run.start + results::whole((run.end - run.start) as f64 * part)
    };
    for (buffer, id) in plan.buffers().iter().filter(|buffer| buffer.bytes > 0).zip(first..) {
        let (from, to) = (at(*buffer.steps.start()), at(buffer.steps.end() + 1));
        events.push((from, What::Lease { id, stream: run.stream, bytes: buffer.bytes }));
        events.push((to.max(from + 1), What::Return { id }));
    }
}

/// Writes the recordings.
pub(crate) fn run(arguments: &RecordArguments) -> Outcome {
    let recordings = Recordings::record(&arguments.day)?;
    fs::create_dir_all(&arguments.out)?;
    for (name, recording) in [("batches", &recordings.batches), ("tensors", &recordings.tensors)] {
        let file = arguments.out.join(format!("{name}.csv"));
        recording.write(BufWriter::new(File::create(&file)?))?;
        results::line(&format!("{}: {} events", file.display(), recording.events.len()))?;
    }
    Ok(())
}
