//! A pool's state and history in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ledger::{BUCKETS, bound};
use super::slot::{State, Status};
use super::{Pool, Shared};
use crate::budget::GRANULE;
use crate::source::{Source, SourceError};

/// A pool's state at one moment. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The most that the pool may hold and reserve.
    pub budget_bytes: usize,
    /// Set aside outside slabs, for weights.
    pub reserved_bytes: usize,
    /// Slabs that the pool has of the source.
    pub held_bytes: usize,
    /// What the device's driver has taken beside all of this, outside the budget; if somebody
    /// [measured](Pool::note_driver) it.
    pub driver_bytes: Option<usize>,
    /// The most that it has held.
    pub peak_held_bytes: usize,
    /// Slabs that leases have.
    pub leased_bytes: usize,
    /// What those leases asked for.
    pub requested_bytes: usize,
    /// The most that leases live at once have asked for.
    pub peak_requested_bytes: usize,
    /// Slabs that wait.
    pub idle_bytes: usize,
    /// The largest slab that waits: free memory at one address.
    pub largest_idle_bytes: usize,
    /// What one lease could get now: idle slabs and unused budget, which can be mapped together.
    pub mappable_bytes: usize,
    /// Slabs, leased or idle.
    pub slabs: usize,
    /// Leases so far.
    pub leases: Leases,
    /// Refusals although enough was free.
    pub refused_with_room: u64,
    /// Batches that used more than their plan said.
    pub overruns: u64,
    /// Calls that the source failed.
    pub failures: u64,
    /// The last of these failures.
    pub last_failure: Option<SourceError>,
    /// Times that everything idle was given back on demand.
    pub trims: u64,
    /// Slabs given back.
    pub retired_slabs: u64,
    /// Bytes given back so far, whole slabs or parts.
    pub given_back_bytes: u64,
    /// Calls to the driver or system, by kind.
    pub calls: Vec<(&'static str, u64)>,
    /// What is expected to be wanted at once while there is work.
    pub predicted_bytes: usize,
    /// What was wanted at once during the last period.
    pub wanted_bytes: usize,
    /// The mean of |predicted − wanted| / wanted, newer windows weighted more.
    pub prediction_error: Option<f64>,
    /// How long leases took: one in sixteen is timed.
    pub latency: Vec<LatencyBucket>,
    /// Nanoseconds of all leases that were timed.
    pub latency_nanoseconds: u64,
    /// Leases that recordings missed because a ring was overwritten before it was read.
    pub unrecorded_leases: u64,
}

/// Leases by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leases {
    /// Served by an idle slab.
    pub warm: u64,
    /// Served by a slab that was made or grown for it.
    pub grown: u64,
    /// Served after waiting for another lease.
    pub waited: u64,
    /// Not served.
    pub refused: u64,
}

/// Leases that took at most so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencyBucket {
    /// The upper bound in nanoseconds; the last bucket has none.
    pub at_most: Option<u64>,
    /// Leases in this bucket alone.
    pub leases: u64,
}

impl Statistics {
    /// External fragmentation of what waits in the pool: `1 − largest idle slab / all idle slabs`;
    /// 0 when nothing waits. Counted at addresses as they are mapped; since idle slabs can be given
    /// back and mapped again as one, no request fails for it.
    pub fn external_fragmentation(&self) -> f64 {
        1.0 - ratio(self.largest_idle_bytes, self.idle_bytes).unwrap_or(1.0)
    }

    /// Internal fragmentation: slab bytes leased per byte asked for; 1 when nothing is leased.
    pub fn internal_fragmentation(&self) -> f64 {
        ratio(self.leased_bytes, self.requested_bytes).unwrap_or(1.0)
    }

    /// Utilisation loss: `1 − peak of what was asked for / peak of what was held`; 0 before the
    /// first lease.
    pub fn utilisation_loss(&self) -> f64 {
        1.0 - ratio(self.peak_requested_bytes, self.peak_held_bytes).unwrap_or(1.0).min(1.0)
    }

    /// Bytes of leased slabs beyond what their leases asked for: of use to nobody until those are
    /// returned.
    pub fn stranded_bytes(&self) -> usize {
        self.leased_bytes.saturating_sub(self.requested_bytes)
    }

    /// The part of the leases that found their slab ready; `None` before the first lease.
    pub fn warm_ratio(&self) -> Option<f64> {
        let Leases { warm, grown, .. } = self.leases;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        (warm + grown > 0).then(|| warm as f64 / (warm + grown) as f64)
    }
}

fn ratio(part: usize, whole: usize) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl<S: Source> Pool<S> {
    /// The pool's state at this moment. Other threads go on meanwhile, so that figures which they
    /// change may be a lease apart from each other.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// Notes what the device's driver has taken beside the pool, for the
    /// [statistics](Self::statistics); the first measurement counts.
    pub fn note_driver(&self, bytes: usize) {
        let _ = self.shared.driver_bytes.set(bytes);
    }

    /// Bytes of the largest idle slab: a batch that fits it needs nothing of the source.
    pub fn warm_bytes(&self) -> usize {
        let idle = self.shared.live_slots().map(|slot| slot.state());
        let idle = idle.filter(|state| state.status == Status::Idle);
        idle.map(|state| state.granules * GRANULE).max().unwrap_or(0)
    }
}

impl<S: Source> Shared<S> {
    pub(super) fn statistics(&self) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut learned = self.learned();
        self.observe(&mut learned, self.source.now());
        let states: Vec<State> = self.live_slots().map(|slot| slot.state()).collect();
        let sizes = |which: &dyn Fn(&State) -> bool| -> Vec<usize> {
            let chosen = states.iter().filter(|&state| which(state));
            chosen.map(|state| state.granules * GRANULE).collect()
        };
        let idle = sizes(&|state| state.status == Status::Idle);
        let idle_bytes = idle.iter().sum();
        let (counts, latency_nanoseconds) = self.ledger.latency();
        let budget = &self.budget;
        let free_budget = budget.available().saturating_sub(budget.held());
        let counters = &self.ledger;
        Statistics {
            driver_bytes: self.driver_bytes.get().copied(),
            budget_bytes: budget.limit(),
            reserved_bytes: budget.reserved(),
            held_bytes: budget.held(),
            peak_held_bytes: budget.peak_held(),
            leased_bytes: sizes(&|state| state.status == Status::Leased).iter().sum(),
            requested_bytes: self.live_slots().map(|slot| slot.ledger.bytes()).sum(),
            peak_requested_bytes: learned.forecast.peak(),
            idle_bytes,
            largest_idle_bytes: idle.iter().copied().max().unwrap_or(0),
            mappable_bytes: idle_bytes + free_budget,
            slabs: sizes(&|state| state.granules > 0).len(),
            leases: Leases {
                warm: self.live_slots().map(|slot| slot.ledger.warm()).sum(),
                grown: read(&counters.grown),
                waited: read(&counters.waited),
                refused: read(&counters.refused),
            },
            refused_with_room: read(&counters.refused_with_room),
            overruns: read(&counters.overruns),
            failures: read(&counters.failures),
            last_failure: counters.last_failure(),
            trims: read(&counters.trims),
            retired_slabs: read(&counters.retired_slabs),
            given_back_bytes: read(&counters.given_back_bytes),
            calls: self.source.calls(),
            predicted_bytes: learned.forecast.usual().iter().sum(),
            wanted_bytes: learned.forecast.recent().iter().sum(),
            prediction_error: learned.forecast.error(),
            latency: buckets(counts),
            latency_nanoseconds,
            unrecorded_leases: learned.lost,
        }
    }
}

fn buckets(counts: [u64; BUCKETS]) -> Vec<LatencyBucket> {
    let bounded = |(index, leases)| {
        let at_most = (index + 1 < BUCKETS).then(|| bound(index));
        LatencyBucket { at_most, leases }
    };
    counts.into_iter().enumerate().map(bounded).collect()
}
