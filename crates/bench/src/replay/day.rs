//! One day's traffic through the pool and the usual ways of managing a GPU's memory.

use std::error::Error;
use std::time::Duration;

use serde::Serialize;
use vecmill_backend_cuda::{CudaStream, Gpu, MappedSource, PlainSource};
use vecmill_lab::results;
use vecmill_memory::recording::{Recording, What};
use vecmill_memory::{PoolSettings, SourceError};
use vecmill_testing::simulated::SimulatedDevice;

use super::command::name;
use super::driver::{PlainCalls, StreamOrdered};
use super::{Manager, Naive, Options, Pooled, Report, WatchedPool, compare};
use crate::Outcome;
use crate::record::{Day, Recordings, TENSORS_PER_BATCH};

/// What a manager made of the day.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    manager: String,
    asked_per: &'static str,
    batches: u64,
    leases: u64,
    refusals: u64,
    refusals_with_room: u64,
    /// The most that tensors live at once took: what the work itself needs.
    peak_needed_bytes: usize,
    peak_asked_bytes: usize,
    peak_held_bytes: usize,
    mean_held_bytes: f64,
    /// `1 − peak asked / peak held`, as the research defines it.
    utilisation_loss: f64,
    /// `1 − peak needed / peak held`: with the same need for everybody, so that what a plan takes
    /// beyond it counts too.
    loss_to_need: f64,
    mean_external_fragmentation: f64,
    max_external_fragmentation: f64,
    mean_internal_fragmentation: f64,
    warm_ratio: f64,
    driver_calls: u64,
    /// Those in the second half of the day.
    warm_driver_calls: u64,
    median: Duration,
    p99: Duration,
}

/// What the managers made of the day, and a picture of the pool beside the naive one.
pub(super) struct Measured {
    pub(super) rows: Vec<Row>,
    pub(super) picture: String,
}

/// Runs them all, on the GPU or on a device of numbers, and prints a table. `plain_batches` go through
/// cuMemAlloc.
pub(super) fn run(
    day: &Day,
    gpu: Option<&Gpu>,
    plain_batches: u64,
) -> Result<Measured, Box<dyn Error>> {
    let recordings = Recordings::record(day)?;
    let measured = match gpu {
        None => on_paper(&recordings),
        Some(device) => on_gpu(&recordings, device, plain_batches)?,
    };
    let (model, name) = (day.model.name(), name(gpu));
    results::line(&format!("{model}, {} batches, on {name}\n", day.batches))?;
    print(&measured.rows)?;
    Ok(measured)
}

/// Far more than any day needs: what is compared is what managers take, not what they lack.
const BUDGET: usize = 32 << 30;

/// The pool against the naive one, on a device of numbers.
fn on_paper(recordings: &Recordings) -> Measured {
    let device = || SimulatedDevice::new(BUDGET);
    let (mut tensors, mut batches) = (Naive::new(device()), Naive::new(device()));
    let (whole, streams) = (device(), device());
    let pool = WatchedPool::new(whole, BUDGET, PoolSettings::default());
    let mut pool = Pooled::new(&pool, move |_| streams.stream());
    let need = peak_live(&recordings.tensors);
    let mut rows = vec![tensor_row(&recordings.tensors, &mut tensors, need)];
    let picture = batch_rows(recordings, &mut pool, &mut batches, need, &mut rows);
    Measured { rows, picture }
}

fn on_gpu(recordings: &Recordings, device: &Gpu, plain: u64) -> Result<Measured, Box<dyn Error>> {
    let need = peak_live(&recordings.tensors);
    let mut rows = Vec::new();
    let mut tensors = Naive::new(PlainSource::new(device));
    rows.push(tensor_row(&recordings.tensors, &mut tensors, need));
    drop(tensors);
    let few = first_batches(&recordings.tensors, plain);
    rows.push(tensor_row(&few, &mut PlainCalls::new(device)?, peak_live(&few)));
    for (name, threshold) in
        [("cuMemAllocAsync, threshold 0", 0), ("cuMemAllocAsync, threshold max", u64::MAX)]
    {
        let mut manager = StreamOrdered::new(device, name, threshold)?;
        rows.push(tensor_row(&recordings.tensors, &mut manager, need));
        device.synchronize()?;
    }
    let mut batches = Naive::new(PlainSource::new(device));
    let stream = streams(device)?;
    let pool = WatchedPool::new(MappedSource::new(device)?, BUDGET, PoolSettings::default());
    let mut pool = Pooled::new(&pool, stream);
    let picture = batch_rows(recordings, &mut pool, &mut batches, need, &mut rows);
    Ok(Measured { rows, picture })
}

/// A stream of the GPU for each number in a recording.
pub(super) fn streams(
    device: &Gpu,
) -> Result<impl FnMut(u32) -> CudaStream + 'static, SourceError> {
    let streams: Vec<_> = (0..64).map(|_| device.stream()).collect::<Result<_, _>>()?;
    Ok(move |number: u32| streams[number as usize % streams.len()].clone())
}

/// The managers that are asked once per batch, and the picture of both.
fn batch_rows(
    recordings: &Recordings,
    pool: &mut dyn Manager,
    naive: &mut dyn Manager,
    need: usize,
    rows: &mut Vec<Row>,
) -> String {
    let count = batches_in(&recordings.batches);
    let compared = compare(&recordings.batches, &mut [pool, naive], &Options::default());
    rows.extend(compared.reports.iter().map(|report| of(report, "batch", need, count)));
    compared.svg()
}

fn tensor_row(recording: &Recording, manager: &mut dyn Manager, need: usize) -> Row {
    let compared = compare(recording, &mut [manager], &Options::default());
    of(&compared.reports[0], "tensor", need, batches_of_tensors(recording))
}

fn of(report: &Report, asked_per: &'static str, need: usize, batches: u64) -> Row {
    let held = report.peak_held_bytes.max(1) as f64;
    Row {
        manager: report.name.clone(),
        asked_per,
        batches,
        leases: report.leases,
        refusals: report.refusals,
        refusals_with_room: report.refusals_with_room,
        peak_needed_bytes: need,
        peak_asked_bytes: report.peak_requested_bytes,
        peak_held_bytes: report.peak_held_bytes,
        mean_held_bytes: report.mean_held_bytes,
        utilisation_loss: report.utilisation_loss(),
        loss_to_need: 1.0 - need as f64 / held,
        mean_external_fragmentation: report.mean_external_fragmentation,
        max_external_fragmentation: report.max_external_fragmentation,
        mean_internal_fragmentation: report.mean_internal_fragmentation,
        warm_ratio: report.warm_ratio(),
        driver_calls: report.driver_calls.iter().map(|(_, count)| count).sum(),
        warm_driver_calls: report.driver_calls_in_second_half,
        median: report.median_time,
        p99: report.p99_time,
    }
}

fn print(rows: &[Row]) -> Outcome {
    results::line(
        "| manager | asked per | batches | peak asked (MiB) | peak held (MiB) | utilisation loss | held / needed | external frag. mean | warm | driver calls | in the 2nd half | p50 | p99 |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    )?;
    for row in rows {
        results::line(&format!(
            "| {} | {} | {} | {} | {} | {:.1} % | {:.3} | {:.1} % | {:.2} % | {} | {} | {:?} | {:?} |",
            row.manager,
            row.asked_per,
            row.batches,
            row.peak_asked_bytes >> 20,
            row.peak_held_bytes >> 20,
            100.0 * row.utilisation_loss,
            row.peak_held_bytes as f64 / row.peak_needed_bytes as f64,
            100.0 * row.mean_external_fragmentation,
            100.0 * row.warm_ratio,
            row.driver_calls,
            row.warm_driver_calls,
            row.median,
            row.p99,
        ))?;
    }
    Ok(())
}

/// The most bytes live at once.
fn peak_live(recording: &Recording) -> usize {
    let mut sizes = std::collections::HashMap::new();
    let (mut live, mut peak) = (0, 0);
    for event in &recording.events {
        match event.what {
            What::Lease { id, bytes, .. } => {
                sizes.insert(id, bytes);
                live += bytes;
                peak = peak.max(live);
            }
            What::Return { id } => live -= sizes.remove(&id).unwrap_or(0),
            _ => {}
        }
    }
    peak
}

fn leases(recording: &Recording) -> impl Iterator<Item = u64> {
    recording.events.iter().filter_map(|event| match event.what {
        What::Lease { id, .. } => Some(id),
        _ => None,
    })
}

fn batches_in(recording: &Recording) -> u64 {
    leases(recording).count() as u64
}

fn batches_of_tensors(recording: &Recording) -> u64 {
    leases(recording).map(|id| id / TENSORS_PER_BATCH).max().unwrap_or(0)
}

/// The tensors of the first `batches` batches.
fn first_batches(recording: &Recording, batches: u64) -> Recording {
    let belongs = |id: u64| id / TENSORS_PER_BATCH <= batches;
    let kept = recording.events.iter().filter(|event| match event.what {
        What::Lease { id, .. } | What::Return { id } => belongs(id),
        _ => false,
    });
    Recording { events: kept.copied().collect(), lost: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dummy::Size;

    /// The pool beside the pool that many services write, asked tensor by tensor as they are.
    fn pool_and_naive(model: Size) -> (Row, Row) {
        let day = Day { model, batches: 10_000, streams: 3, seed: 1 };
        let mut rows = on_paper(&Recordings::record(&day).unwrap()).rows;
        let naive = rows.remove(0);
        let pool = rows.into_iter().find(|row| row.manager == "pool").unwrap();
        assert_eq!((naive.manager.as_str(), naive.asked_per), ("naive", "tensor"));
        (pool, naive)
    }

    #[test]
    fn a_day_of_a_small_model() {
        let (pool, naive) = pool_and_naive(Size::Minilm);
        check(&pool, &naive);
    }

    #[test]
    fn a_day_of_a_large_model() {
        let (pool, naive) = pool_and_naive(Size::BgeLarge);
        check(&pool, &naive);
    }

    fn check(pool: &Row, naive: &Row) {
        assert_eq!((pool.refusals, pool.refusals_with_room), (0, 0));
        assert!(pool.utilisation_loss <= 0.2 * naive.utilisation_loss, "{pool:?}\n{naive:?}");
        assert!(
            pool.mean_external_fragmentation <= 0.2 * naive.mean_external_fragmentation,
            "{pool:?}\n{naive:?}"
        );
        assert!(pool.peak_held_bytes <= pool.peak_asked_bytes / 4 * 5, "{pool:?}");
        assert!(pool.warm_ratio >= 0.99 && pool.warm_driver_calls == 0, "{pool:?}");
    }
}
