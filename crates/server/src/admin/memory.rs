//! A device's memory, told and given back. As JSON it is in the order in which people look at it;
//! sizes are in bytes, and ratios are from 0 to 1 unless said otherwise.

use std::collections::BTreeMap;

use axum::extract::RawQuery;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vecmill_engine::{MemoryStatistics, Recording};

use super::ask::{beside, json, named_device};
use crate::failure::Failure;
use crate::loading::Model;

const CSV: HeaderValue = HeaderValue::from_static("text/csv; charset=utf-8");

/// `GET /admin/memory`: each device's memory in numbers.
pub(crate) async fn figures(model: Model) -> Result<Response, Failure> {
    let memory = beside(&model, |engine| engine.memory()).await?;
    json(memory.iter().map(|(name, now)| Figures::new(name, now)).collect())
}

/// `POST /admin/memory/trim`: has what is unused given back, now.
pub(crate) async fn trim(model: Model) -> Result<Response, Failure> {
    let trimmed = beside(&model, |engine| engine.trim_memory()).await?;
    for (device, bytes) in &trimmed {
        tracing::info!(device = &**device, bytes, "memory given back on the operator's demand");
    }
    json(
        trimmed
            .into_iter()
            .map(|(device, bytes)| Trimmed { device: device.to_string(), bytes })
            .collect(),
    )
}

/// `GET /admin/memory/recording?device=NAME`: a device's leases, as a file for `vecmill-bench replay`.
pub(crate) async fn recording(
    model: Model,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let device = named_device(&model, query.as_deref())?;
    let wanted = device.clone();
    let csv = beside(&model, move |engine| {
        let recordings = engine.memory_recordings().into_iter();
        let recording = recordings.into_iter().find(|(name, _)| **name == *wanted)?.1;
        csv(&recording)
    });
    let csv = csv.await?.ok_or(Failure::Internal)?;
    let attachment = format!("attachment; filename=\"{}\"", file_name(&device));
    let attachment = HeaderValue::from_str(&attachment).map_err(|_| Failure::Internal)?;
    Ok(([(CONTENT_TYPE, CSV), (CONTENT_DISPOSITION, attachment)], csv).into_response())
}

fn csv(recording: &Recording) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    recording.write(&mut bytes).ok()?;
    Some(bytes)
}

/// What to save a device's recording as: `cuda:0/sms=32` is no name for a file.
fn file_name(device: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("vecmill-memory-{}.csv", device.chars().map(plain).collect::<String>())
}

/// What one device gave back.
#[derive(Serialize)]
struct Trimmed {
    device: String,
    bytes: usize,
}

/// One device's memory.
#[derive(Serialize)]
struct Figures<'a> {
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
    unrecorded: u64,
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
    buckets: Vec<BucketFigures>,
}

#[derive(Serialize)]
struct BucketFigures {
    /// `null` has no upper bound.
    at_most_nanoseconds: Option<u64>,
    leases: u64,
}

impl<'a> Figures<'a> {
    /// What `now` says of `device`.
    fn new(device: &'a str, now: &MemoryStatistics) -> Self {
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
        unrecorded: now.unrecorded_leases,
        warm_ratio: now.warm_ratio(),
    }
}

/// Buckets without leases say nothing and are left out.
fn lease_time(now: &MemoryStatistics) -> LeaseTime {
    let buckets = now.latency.iter().filter(|bucket| bucket.leases > 0);
    let buckets = buckets
        .map(|it| BucketFigures { at_most_nanoseconds: it.at_most, leases: it.leases })
        .collect();
    LeaseTime { sum_nanoseconds: now.latency_nanoseconds, buckets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_harmless() {
        assert_eq!(file_name("cpu"), "vecmill-memory-cpu.csv");
        assert_eq!(file_name("cuda:0/\"\r\n"), "vecmill-memory-cuda-0----.csv");
    }
}
