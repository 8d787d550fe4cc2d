//! Figures for metrics and pages.

use std::time::Duration;

use crate::health::Health;
use crate::speed::Coefficients;

/// How a device stands and what it has done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceStatistics {
    /// Whether it gets work.
    pub health: Health,
    /// Its share of the tokens per second of all devices that serve, in full batches.
    pub weight: f64,
    /// Its learned speed, once anything is known.
    pub speed: Option<Coefficients>,
    /// How far the last prediction was off, relative to what was measured; above zero if the batch
    /// took longer.
    pub last_error: f64,
    /// The mean of that of late, in either direction.
    pub mean_error: f64,
    /// The most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches that it takes at most before it has finished one.
    pub in_flight: usize,
    /// Batches that it has taken and not finished.
    pub running_batches: usize,
    /// Tokens of these.
    pub running_tokens: usize,
    /// Tokens that wait for it alone: assigned by a policy that does so.
    pub assigned_tokens: usize,
    /// When it will be done with all that it has, running and assigned.
    pub backlog: Duration,
    /// Batches that it has run.
    pub batches: u64,
    /// Inputs of these.
    pub inputs: u64,
    /// Tokens of these.
    pub tokens: u64,
    /// Time that it took for them.
    pub busy: Duration,
    /// Batches that it failed at.
    pub failures: u64,
    /// Times that it didn't move and was taken out for it.
    pub stalls: u64,
    /// Inputs that were assigned to it and moved elsewhere.
    pub moved: u64,
    /// Inputs that it failed at and that were queued once more.
    pub retried: u64,
}
