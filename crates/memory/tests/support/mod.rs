//! A pool over a simulated device, and what tests of it do again and again.
#![allow(dead_code, reason = "each program of tests uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests speak by panicking")]

use vecmill_memory::{GiveBack, Pool, PoolSettings};
use vecmill_testing::simulated::{SimulatedDevice, SimulatedStream};

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A device of 1 GiB, a stream of it, and a pool that may have all of it.
pub(crate) fn pool(
    give_back: GiveBack,
) -> (SimulatedDevice, SimulatedStream, Pool<SimulatedDevice>) {
    let device = SimulatedDevice::new(1 << 30).instant();
    let pool = pool_over(&device, give_back);
    (device.clone(), device.stream(), pool)
}

pub(crate) fn pool_over(device: &SimulatedDevice, give_back: GiveBack) -> Pool<SimulatedDevice> {
    let settings = PoolSettings { give_back, ..PoolSettings::default() };
    Pool::with_settings(device.clone(), 1 << 30, settings)
}

#[track_caller]
pub(crate) fn assert_innocent(device: &SimulatedDevice) {
    assert!(device.violations().is_empty(), "{:?}", device.violations());
}

/// Runs batches of `sizes` in MiB at once, `seconds` times, a second apart.
pub(crate) fn work(
    device: &SimulatedDevice,
    pool: &Pool<SimulatedDevice>,
    sizes: &[usize],
    seconds: u64,
) {
    let stream = device.stream();
    for _ in 0..seconds {
        let leases: Vec<_> =
            sizes.iter().map(|mib| pool.lease(mib * MIB, &stream).unwrap()).collect();
        device.advance(SECOND / 10);
        drop(leases);
        device.advance(SECOND - SECOND / 10);
        pool.maintain();
    }
}
