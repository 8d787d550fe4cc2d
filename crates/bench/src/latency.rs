//! How long a lease and its return take, beside what the driver takes for a buffer.

use std::path::PathBuf;
use std::sync::Barrier;

use clap::Args;
use quanta::Clock;
use serde::Serialize;
use vecmill_backend_cuda::{CudaStream, Gpu, MappedSource, PlainSource, StreamOrderedSource};
use vecmill_lab::histogram::percentile;
use vecmill_lab::results;
use vecmill_memory::{Pool, Source};

use crate::Outcome;

const MIB: usize = 1 << 20;

/// Arguments of `vecmill-bench latency`.
#[derive(Debug, Args)]
pub(crate) struct LatencyArguments {
    /// The GPU's number
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Leases per thread
    #[arg(long, default_value_t = 100_000)]
    leases: usize,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    threads: usize,
    /// Readings of the clock that each sample contains.
    clock_readings: u64,
    p50_nanoseconds: u64,
    p99_nanoseconds: u64,
    /// The median less what reading the clock takes.
    p50_without_clock_nanoseconds: u64,
}

impl Row {
    fn new(what: impl Into<String>, threads: usize, samples: &mut [u64]) -> Self {
        samples.sort_unstable();
        let p50 = percentile(samples, 0.5);
        Self {
            what: what.into(),
            threads,
            clock_readings: 1,
            p50_nanoseconds: p50,
            p99_nanoseconds: percentile(samples, 0.99),
            p50_without_clock_nanoseconds: p50,
        }
    }
}

/// Measures all and prints a table.
pub(crate) fn run(arguments: &LatencyArguments) -> Outcome {
    let device = Gpu::open(arguments.device)?;
    let leases = arguments.leases;
    let mut rows = vec![clock(leases)];
    for threads in [1, 4, 16] {
        rows.push(lease_and_return(&device, threads, leases)?);
    }
    rows.push(lease_record_and_return(&device, leases)?);
    for (name, threshold) in [("threshold max", u64::MAX), ("threshold 0", 0)] {
        rows.push(stream_ordered(&device, name, threshold, false, leases)?);
        rows.push(stream_ordered(&device, name, threshold, true, 500)?);
    }
    for mib in [1, 16, 256] {
        rows.push(plain(&device, mib, 200)?);
    }
    let reading = rows[0].p50_nanoseconds;
    for row in &mut rows[1..] {
        let clock = reading * row.clock_readings;
        row.p50_without_clock_nanoseconds = row.p50_nanoseconds.saturating_sub(clock);
    }
    results::line(
        "| what | threads | p50 (ns) | p99 (ns) | p50 without the clock (ns) |\n|---|---:|---:|---:|---:|",
    )?;
    for row in &rows {
        let Row { what, threads, p50_nanoseconds: p50, p99_nanoseconds: p99, .. } = row;
        let net = row.p50_without_clock_nanoseconds;
        results::line(&format!("| {what} | {threads} | {p50} | {p99} | {net} |"))?;
    }
    results::write(arguments.json.as_deref(), &device.info().name, &rows)
}

/// What reading the clock takes. Each figure below contains it once, that of lease and return alone
/// twice.
fn clock(samples: usize) -> Row {
    let clock = Clock::new();
    let mut taken: Vec<u64> =
        (0..samples).map(|_| clock.delta_as_nanos(clock.raw(), clock.raw())).collect();
    Row::new("reading the clock", 1, &mut taken)
}

/// The pool: a slab of 64 MiB, leased and returned. The batch's end has been recorded before, as the
/// batch itself needs it.
fn lease_and_return(
    device: &Gpu,
    threads: usize,
    leases: usize,
) -> Result<Row, Box<dyn std::error::Error>> {
    let pool = Pool::new(MappedSource::new(device)?, 64 << 30);
    let start = Barrier::new(threads);
    let measure = |stream: CudaStream| -> Result<Vec<u64>, vecmill_memory::LeaseError> {
        let clock = Clock::new();
        let mut samples = Vec::with_capacity(leases);
        start.wait();
        for _ in 0..leases {
            let before = clock.raw();
            let mut lease = pool.lease(60 * MIB, &stream)?;
            let leased = clock.raw();
            lease.record()?;
            let done = clock.raw();
            drop(lease);
            let after = clock.raw();
            samples.push(clock.delta_as_nanos(before, leased) + clock.delta_as_nanos(done, after));
        }
        Ok(samples)
    };
    let streams: Vec<CudaStream> =
        (0..threads).map(|_| device.stream()).collect::<Result<_, _>>()?;
    let warm: Result<Vec<_>, _> =
        streams.iter().map(|stream| pool.lease(64 * MIB, stream)).collect();
    drop(warm?);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(|| measure(stream))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut samples = Vec::new();
    for result in results {
        samples.extend(result.map_err(|_| "a measuring thread panicked")??);
    }
    let row = Row::new("pool: lease + return of a batch's slab", threads, &mut samples);
    Ok(Row { clock_readings: 2, ..row })
}

fn lease_record_and_return(device: &Gpu, leases: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let pool = Pool::new(MappedSource::new(device)?, 64 << 30);
    let (stream, clock) = (device.stream()?, Clock::new());
    drop(pool.lease(64 * MIB, &stream)?);
    let mut samples = Vec::with_capacity(leases);
    for _ in 0..leases {
        let before = clock.raw();
        drop(pool.lease(60 * MIB, &stream)?);
        samples.push(clock.delta_as_nanos(before, clock.raw()));
    }
    Ok(Row::new("pool: the same with the event that marks the batch's end", 1, &mut samples))
}

fn stream_ordered(
    device: &Gpu,
    name: &str,
    threshold: u64,
    synchronise: bool,
    pairs: usize,
) -> Result<Row, Box<dyn std::error::Error>> {
    let source = StreamOrderedSource::new(device, threshold)?;
    let (stream, clock) = (device.stream()?, Clock::new());
    let mut samples = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        let before = clock.raw();
        let block = source.allocate_in(&stream, 16 * MIB)?;
        source.release_in(&stream, block)?;
        if synchronise {
            stream.synchronize()?;
        }
        samples.push(clock.delta_as_nanos(before, clock.raw()));
    }
    let after = if synchronise { ", then waiting for the stream" } else { "" };
    Ok(Row::new(format!("cuMemAllocAsync + FreeAsync, {name}{after}"), 1, &mut samples))
}

fn plain(device: &Gpu, mib: usize, pairs: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let (source, clock) = (PlainSource::new(device), Clock::new());
    let mut samples = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        let before = clock.raw();
        let block = source.allocate(mib * MIB)?;
        source.release(block)?;
        samples.push(clock.delta_as_nanos(before, clock.raw()));
    }
    Ok(Row::new(format!("cuMemAlloc + cuMemFree, {mib} MiB"), 1, &mut samples))
}
