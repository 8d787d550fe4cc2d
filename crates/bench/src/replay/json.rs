//! A replay in JSON. All sizes are in bytes.

use std::collections::BTreeMap;

use super::{Comparison, Report};
use serde::Serialize;
use vecmill_memory::recording::Recording;

#[derive(Serialize)]
pub(super) struct Json<'a> {
    recording: Replayed<'a>,
    budget_bytes: Option<usize>,
    policies: Vec<Policy<'a>>,
}

#[derive(Serialize)]
struct Replayed<'a> {
    events: usize,
    lost_events: u64,
    nanoseconds: u64,
    streams: &'a [u32],
}

#[derive(Serialize)]
struct Policy<'a> {
    policy: &'a str,
    leases: u64,
    refusals: u64,
    refusals_with_room: u64,
    requested_peak_bytes: usize,
    held_peak_bytes: usize,
    held_mean_bytes: f64,
    held_at_end_bytes: usize,
    utilisation_loss: f64,
    external_fragmentation_mean: f64,
    external_fragmentation_peak: f64,
    given_per_asked_mean: f64,
    given_per_asked_peak: f64,
    warm_ratio: f64,
    lease_and_return_p50_nanoseconds: u128,
    lease_and_return_p99_nanoseconds: u128,
    driver_calls: BTreeMap<&'static str, u64>,
}

/// What `comparison` says of `recording`.
pub(super) fn of<'a>(recording: &Recording, comparison: &'a Comparison) -> Json<'a> {
    Json {
        recording: Replayed {
            events: recording.events.len(),
            lost_events: recording.lost,
            nanoseconds: comparison.nanoseconds,
            streams: &comparison.streams,
        },
        budget_bytes: comparison.budget,
        policies: comparison.reports.iter().map(policy).collect(),
    }
}

fn policy(report: &Report) -> Policy<'_> {
    Policy {
        policy: &report.name,
        leases: report.leases,
        refusals: report.refusals,
        refusals_with_room: report.refusals_with_room,
        requested_peak_bytes: report.peak_requested_bytes,
        held_peak_bytes: report.peak_held_bytes,
        held_mean_bytes: report.mean_held_bytes,
        held_at_end_bytes: report.end_held_bytes,
        utilisation_loss: report.utilisation_loss(),
        external_fragmentation_mean: report.mean_external_fragmentation,
        external_fragmentation_peak: report.max_external_fragmentation,
        given_per_asked_mean: report.mean_internal_fragmentation,
        given_per_asked_peak: report.peak_internal_fragmentation,
        warm_ratio: report.warm_ratio(),
        lease_and_return_p50_nanoseconds: report.median_time.as_nanos(),
        lease_and_return_p99_nanoseconds: report.p99_time.as_nanos(),
        driver_calls: report.driver_calls.iter().copied().collect(),
    }
}
