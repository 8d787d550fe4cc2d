//! A device's memory as JSON, in the order in which people look at it. Sizes are in bytes, and
//! ratios are from 0 to 1 unless said otherwise.

use std::collections::BTreeMap;

use serde::Serialize;
use vecmill_engine::MemoryStatistics;

/// One device's memory.
#[derive(Serialize)]
pub(super) struct Figures<'a> {
    device: &'a str,
    budget_bytes: usize,
    reserved_bytes: usize,
    held_bytes: usize,
    /// Of the device, beside the budget: context, libraries, kernels. `null` where unknown.
    driver_bytes: Option<usize>,
    leased_bytes: usize,
    requested_bytes: usize,
    stranded_bytes: usize,
    slabs: usize,
    free: Free,
    peak: Peak,
    fragmentation: Fragmentation,
    leases: Leases,
    prediction: Prediction,
    given_back: GivenBack,
    calls: BTreeMap<&'static str, u64>,
    failures: Failures,
    lease_time: LeaseTime,
}

#[derive(Serialize)]
struct Free {
    /// What the budget leaves beside weights and leases.
    bytes: usize,
    idle_bytes: usize,
    largest_idle_bytes: usize,
    mappable_bytes: usize,
}

#[derive(Serialize)]
struct Peak {
    held_bytes: usize,
    requested_bytes: usize,
}

#[derive(Serialize)]
struct Fragmentation {
    external: f64,
    /// Bytes leased for each byte asked for: 1 or more.
    internal: f64,
    utilisation_loss: f64,
}

#[derive(Serialize)]
struct Leases {
    warm: u64,
    grown: u64,
    waited: u64,
    refused: u64,
    refused_with_room: u64,
    untraced: u64,
    warm_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Prediction {
    predicted_bytes: usize,
    wanted_bytes: usize,
    /// Relative, so that it may be more than 1.
    error: Option<f64>,
}

#[derive(Serialize)]
struct GivenBack {
    bytes: u64,
    slabs: u64,
    trims: u64,
}

#[derive(Serialize)]
struct Failures {
    calls: u64,
    last: Option<String>,
    overruns: u64,
}

/// How long leases took, of those that were timed.
#[derive(Serialize)]
struct LeaseTime {
    sum_nanoseconds: u64,
    buckets: Vec<Bucket>,
}

#[derive(Serialize)]
struct Bucket {
    /// `null` has no upper bound.
    at_most_nanoseconds: Option<u64>,
    leases: u64,
}

impl<'a> Figures<'a> {
    /// What `now` says of `device`.
    pub(super) fn new(device: &'a str, now: &MemoryStatistics) -> Self {
        Self {
            device,
            budget_bytes: now.budget_bytes,
            reserved_bytes: now.reserved_bytes,
            held_bytes: now.held_bytes,
            driver_bytes: now.driver_bytes,
            leased_bytes: now.leased_bytes,
            requested_bytes: now.requested_bytes,
            stranded_bytes: now.stranded_bytes(),
            slabs: now.slabs,
            free: Free {
                bytes: now.budget_bytes.saturating_sub(now.reserved_bytes + now.leased_bytes),
                idle_bytes: now.idle_bytes,
                largest_idle_bytes: now.largest_idle_bytes,
                mappable_bytes: now.mappable_bytes,
            },
            peak: Peak {
                held_bytes: now.peak_held_bytes,
                requested_bytes: now.peak_requested_bytes,
            },
            fragmentation: Fragmentation {
                external: now.external_fragmentation(),
                internal: now.internal_fragmentation(),
                utilisation_loss: now.utilisation_loss(),
            },
            leases: leases(now),
            prediction: Prediction {
                predicted_bytes: now.predicted_bytes,
                wanted_bytes: now.wanted_bytes,
                error: now.prediction_error,
            },
            given_back: GivenBack {
                bytes: now.given_back_bytes,
                slabs: now.retired_slabs,
                trims: now.trims,
            },
            calls: now.calls.iter().copied().collect(),
            failures: Failures {
                calls: now.failures,
                last: now.last_failure.as_ref().map(ToString::to_string),
                overruns: now.overruns,
            },
            lease_time: lease_time(now),
        }
    }
}

fn leases(now: &MemoryStatistics) -> Leases {
    let leases = &now.leases;
    Leases {
        warm: leases.warm,
        grown: leases.grown,
        waited: leases.waited,
        refused: leases.refused,
        refused_with_room: now.refused_with_room,
        untraced: now.unrecorded_leases,
        warm_ratio: now.warm_ratio(),
    }
}

/// Buckets without leases say nothing and are left out.
fn lease_time(now: &MemoryStatistics) -> LeaseTime {
    let buckets = now.latency.iter().filter(|bucket| bucket.leases > 0);
    let buckets =
        buckets.map(|it| Bucket { at_most_nanoseconds: it.at_most, leases: it.leases }).collect();
    LeaseTime { sum_nanoseconds: now.latency_nanoseconds, buckets }
}
