//! Batches of all sizes through a pool: `cargo run -p vecmill-memory --example pool`.
//!
//! Each batch is planned, admitted, run in one leased slab, and gives it back. Two spikes come by;
//! the pool's memory grows for them and returns to what the rest needs.

use std::io::{self, Write};
use std::time::Duration;

use vecmill_memory::{GiveBack, Lease, LeaseError, Plan, Planner, Pool, PoolSettings, Remedy};
use vecmill_testing::simulated::{SimulatedDevice, SimulatedStream};

const MIB: usize = 1 << 20;
const MILLISECOND: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = SimulatedDevice::new(2048 * MIB);
    let settings = PoolSettings {
        give_back: GiveBack::After(Duration::from_secs(2)),
        ..PoolSettings::default()
    };
    let pool = Pool::with_settings(device.clone(), 1024 * MIB, settings);
    let stream = device.stream();
    let mut out = io::stdout().lock();
    writeln!(out, "second  tokens     plan     held  waits or splits")?;
    for step in 0..120u64 {
        let spike = step % 60 == 20;
        let tokens = if spike { 200_000 } else { 4_000 + 300 * (step as usize % 7) };
        let remedies = run(&device, &pool, &stream, tokens)?;
        device.advance(100 * MILLISECOND);
        pool.maintain();
        if step % 10 == 0 || spike {
            let (plan, held) =
                (plan(tokens).peak_bytes() / MIB, pool.statistics().held_bytes / MIB);
            let second = step as f64 / 10.0;
            writeln!(out, "{second:6.1}  {tokens:6}  {plan:4} MiB  {held:4} MiB  {remedies}")?;
        }
    }
    let now = pool.statistics();
    writeln!(
        out,
        "\n{} leases found their slab ready, {} grew one; the peak was {} MiB of {} MiB.",
        now.leases.warm,
        now.leases.grown,
        now.peak_held_bytes / MIB,
        now.budget_bytes / MIB,
    )?;
    Ok(())
}

/// A layer of 384 values per token: what comes in, four times as much in between, what goes out.
fn plan(tokens: usize) -> Plan {
    let row = 384 * 4;
    let mut planner = Planner::new();
    planner.buffer(tokens * row, 0..=1);
    planner.buffer(tokens * row * 4, 1..=2);
    planner.buffer(tokens * row, 2..=3);
    planner.plan()
}

/// Runs a batch, in halves if it does not fit, and tells how often it had to give way.
fn run(
    device: &SimulatedDevice,
    pool: &Pool<SimulatedDevice>,
    stream: &SimulatedStream,
    tokens: usize,
) -> Result<usize, LeaseError> {
    match pool.lease(plan(tokens).peak_bytes(), stream) {
        Ok(lease) => {
            work(device, &lease, stream);
            Ok(0) // dropping the lease returns the slab; the device may still be at work
        }
        Err(error) if error.remedy() == Remedy::Split => {
            let half = tokens / 2;
            let first = run(device, pool, stream, half)?;
            Ok(1 + first + run(device, pool, stream, tokens - half)?)
        }
        Err(error) => Err(error),
    }
}

fn work(device: &SimulatedDevice, lease: &Lease<'_, SimulatedDevice>, stream: &SimulatedStream) {
    device.launch(stream, lease.block(), 0..lease.planned_bytes(), 5 * MILLISECOND);
}
