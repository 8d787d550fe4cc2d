//! What a manager made of a recording, in figures.

use std::time::Duration;

use super::addresses::AddressMap;
use super::series::Series;

/// What one manager made of a recording.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// The manager's name.
    pub(crate) name: String,
    /// Leases that were given.
    pub(crate) leases: u64,
    /// Leases that were refused.
    pub(crate) refusals: u64,
    /// Leases that were refused although at least as many bytes were held and free.
    pub(crate) refusals_with_room: u64,
    /// The most that was held.
    pub(crate) peak_held_bytes: usize,
    /// The most that the leases given had asked for at one moment.
    pub(crate) peak_requested_bytes: usize,
    /// What was held on average over the recording's time.
    pub(crate) mean_held_bytes: f64,
    /// What was held after the last event.
    pub(crate) end_held_bytes: usize,
    /// The mean over time of
    /// [`Usage::external_fragmentation`](super::Usage::external_fragmentation).
    pub(crate) mean_external_fragmentation: f64,
    /// Its highest value.
    pub(crate) max_external_fragmentation: f64,
    /// Internal fragmentation, at the moment when most was asked for: bytes handed out for each
    /// byte asked for, at least 1.
    pub(crate) peak_internal_fragmentation: f64,
    /// Its mean over the time in which anything was leased.
    pub(crate) mean_internal_fragmentation: f64,
    /// Calls that took or gave memory, by kind.
    pub(crate) driver_calls: Vec<(&'static str, u64)>,
    /// How many of them were made from the recording's second half of leases on: what a manager does
    /// once it is warm.
    pub(crate) driver_calls_in_second_half: u64,
    /// Leases during which no such call was made.
    pub(crate) warm_leases: u64,
    /// What half of the leases cost at most, taking and returning together, on this machine's
    /// clock.
    pub(crate) median_time: Duration,
    /// What 99 of 100 leases cost at most.
    pub p99_time: Duration,
    /// Bytes over time.
    pub(crate) series: Series,
    /// Where the leases lay.
    pub(crate) map: AddressMap,
}

impl Report {
    /// The part of what was held at most that was never asked for at once, from 0 to 1.
    pub(crate) fn utilisation_loss(&self) -> f64 {
        if self.peak_held_bytes == 0 {
            return 0.0;
        }
        (1.0 - self.peak_requested_bytes as f64 / self.peak_held_bytes as f64).max(0.0)
    }

    /// The part of the leases that needed no call to the driver, from 0 to 1; 1 when there were
    /// none.
    pub(crate) fn warm_ratio(&self) -> f64 {
        if self.leases == 0 {
            return 1.0;
        }
        self.warm_leases as f64 / self.leases as f64
    }
}
