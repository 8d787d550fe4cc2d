//! Adversarial load on a real GPU: batches of random size that fill their memory and check it,
//! spikes up to the whole budget, and another process that takes whatever is left of the card.
//!
//! - `load` is the requests and the workers that run them; `neighbour` the other process; `verdict`
//!   says of each spike whether the pool's memory came back, and draws it.
//!
//! What has to hold: nothing runs out of memory, each request that was accepted is answered, and
//! after each spike the pool holds again what it held before, within the period it was given.

mod load;
mod neighbour;
mod verdict;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use vecmill_backend_cuda::{Gpu, MappedSource};
use vecmill_lab::results;
use vecmill_memory::{GiveBack, Pool, PoolSettings};

use crate::Outcome;
use load::Load;
use verdict::{Sample, Verdict};

pub(crate) use neighbour::{NeighbourArguments, be_neighbour};

/// Arguments of `vecmill-bench pressure`.
#[derive(Debug, Args)]
pub(crate) struct PressureArguments {
    /// The GPU's number
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// How long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The pool's budget in per cent of the card
    #[arg(long, default_value_t = 90)]
    budget_per_cent: usize,
    /// Seconds after which the pool gives back what is not needed
    #[arg(long, default_value_t = 5)]
    give_back_seconds: u64,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a picture of memory over time
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// How often memory is looked at.
const SAMPLED: Duration = Duration::from_millis(50);

/// Runs the load and prints the verdict; fails when it is not good.
pub(crate) fn run(arguments: &PressureArguments) -> Outcome {
    let device = Gpu::open(arguments.device)?;
    let budget = device.memory_info()?.total / 100 * arguments.budget_per_cent;
    let period = Duration::from_secs(arguments.give_back_seconds);
    let settings = PoolSettings { give_back: GiveBack::After(period), ..PoolSettings::default() };
    let pool = Pool::with_settings(MappedSource::new(&device)?, budget, settings);
    let _trimmer = pool.trimmer(SAMPLED)?;
    let neighbour = neighbour::start(arguments.device)?;
    let load = Load::new(pool.clone(), budget);
    let streams: Vec<_> = (0..load::WORKERS).map(|_| device.stream()).collect::<Result<_, _>>()?;
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let mut samples = Vec::new();
    std::thread::scope(|scope| -> Outcome {
        let workers: Vec<_> =
            streams.iter().map(|stream| scope.spawn(|| load.work(stream))).collect();
        scope.spawn(|| load.generate(&stop, started));
        while started.elapsed() < Duration::from_secs(arguments.seconds) {
            wait(SAMPLED);
            let now = pool.statistics();
            samples.push(Sample {
                seconds: started.elapsed().as_secs_f64(),
                spike: load.in_spike(started.elapsed()),
                held_bytes: now.held_bytes,
                leased_bytes: now.leased_bytes,
                device_free_bytes: device.memory_info().map_or(0, |memory| memory.free),
            });
        }
        stop.store(true, Ordering::Release);
        load.close();
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")?;
        }
        Ok(())
    })?;
    drop(neighbour);
    let verdict = Verdict::new(&samples, period, &load.answers(), &pool.statistics());
    results::line(&verdict.text())?;
    if let Some(file) = &arguments.svg {
        fs::write(file, verdict::draw(&samples, budget, &device.info().name))?;
    }
    results::write(arguments.json.as_deref(), &device.info().name, &verdict)?;
    if verdict.is_good() { Ok(()) } else { Err("not all that has to hold did hold".into()) }
}

/// Measuring needs pauses that nothing ends.
fn wait(time: Duration) {
    std::thread::park_timeout(time);
}
