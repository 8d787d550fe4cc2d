//! Memory in metrics: every figure of a device's pool, read when metrics are asked for.
//!
//! Fragmentation is defined as the allocators that people compare with define it: external as in
//! RMM and TensorFlow, internal as in PyTorch, utilisation loss as in GMLake.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;
use vecmill_encoder::PlanStatistics;
use vecmill_memory::Statistics;

use crate::info::DeviceName;

/// A device's memory at one moment.
#[derive(Debug, Clone)]
pub(crate) struct PoolSample {
    pub(crate) pool: Statistics,
    pub(crate) plans: PlanStatistics,
    /// Ways of computing that were taken for the first time since practice ended.
    pub(crate) first_uses: u64,
}

/// The memory of devices, by name.
#[derive(Debug)]
pub(super) struct Memory(pub(super) Vec<(DeviceName, PoolSample)>);

/// A metric with one value per device: name, help and where the value comes from.
type Metric<V> = (&'static str, &'static str, fn(&PoolSample) -> V);

#[rustfmt::skip] // one metric, one line
const BYTES: [Metric<usize>; 11] = [
    ("memory_budget", "The most that the pool may hold and reserve", |m| m.pool.budget_bytes),
    ("memory_reserved", "Set aside for weights", |m| m.pool.reserved_bytes),
    ("memory_held", "Slabs that the pool has of the device", |m| m.pool.held_bytes),
    ("memory_held_peak", "The most that the pool has held", |m| m.pool.peak_held_bytes),
    ("memory_leased", "Slabs that batches have", |m| m.pool.leased_bytes),
    ("memory_requested", "What those batches' plans asked for", |m| m.pool.requested_bytes),
    ("memory_requested_peak", "The most that batches at once have asked for", |m| m.pool.peak_requested_bytes),
    ("memory_free", "Slabs that wait for a batch", |m| m.pool.idle_bytes),
    ("memory_stranded", "Leased slabs beyond what was asked for: of use to nobody until they are returned", |m| m.pool.stranded_bytes()),
    ("memory_predicted", "What is expected to be wanted at once while there is work", |m| m.pool.predicted_bytes),
    ("memory_wanted", "The most that was wanted at once during the last give-back period", |m| m.pool.wanted_bytes),
];

#[rustfmt::skip]
const COUNTS: [Metric<usize>; 2] = [
    ("memory_slabs", "Slabs that the pool has, leased or free", |m| m.pool.slabs),
    ("memory_plans_cached", "Memory plans that are kept, one per bucket of batch shapes", |m| m.plans.plans),
];

#[rustfmt::skip]
const RATIOS: [Metric<Option<f64>>; 5] = [
    ("memory_external_fragmentation_ratio", "1 - largest free slab / all free slabs, as mapped now; 0 when none is free. Free slabs can be given back and mapped again as one, so that no batch fails for it", |m| Some(m.pool.external_fragmentation())),
    ("memory_internal_fragmentation_ratio", "Bytes of leased slabs per byte that was asked for; 1 when nothing is leased", |m| Some(m.pool.internal_fragmentation())),
    ("memory_utilisation_loss_ratio", "1 - requested_peak / held_peak; 0 before the first lease", |m| Some(m.pool.utilisation_loss())),
    ("memory_prediction_error_ratio", "Mean of |predicted - wanted| / wanted, newer windows weighted more; absent before the first prediction", |m| m.pool.prediction_error),
    ("memory_warm_ratio", "The part of the leases that found their slab ready; absent before the first lease", |m| m.pool.warm_ratio()),
];

#[rustfmt::skip]
const COUNTERS: [Metric<u64>; 9] = [
    ("memory_trims", "Times that everything free was given back on demand", |m| m.pool.trims),
    ("memory_slabs_given_back", "Slabs given back to the device", |m| m.pool.retired_slabs),
    ("memory_refusals_with_room", "Leases refused although enough was free: must stay 0", |m| m.pool.refused_with_room),
    ("memory_plan_overruns", "Steps that reached further than their batch's plan: must stay 0", |m| m.pool.overruns),
    ("memory_source_failures", "Calls for memory that the device or system failed", |m| m.pool.failures),
    ("memory_plan_cache_hits", "Look-ups of a memory plan that was there", |m| m.plans.hits),
    ("memory_plan_cache_misses", "Look-ups of a memory plan that had to be made", |m| m.plans.misses),
    ("first_uses_after_start", "Kernels and algorithms used for the first time after practice: should stay 0", |m| m.first_uses),
    ("memory_plan_cache_evictions", "Memory plans dropped for newer ones", |m| m.plans.evictions),
];

/// One sample: its labels beside the device's, and its value.
type Sample<V> = (&'static str, &'static str, V);

fn largest_free(memory: &PoolSample) -> [Sample<usize>; 2] {
    [
        ("kind", "mapped", memory.pool.largest_idle_bytes),
        ("kind", "mappable", memory.pool.mappable_bytes),
    ]
}

fn leases(memory: &PoolSample) -> [Sample<u64>; 4] {
    let leases = memory.pool.leases;
    [
        ("outcome", "warm", leases.warm),
        ("outcome", "grown", leases.grown),
        ("outcome", "waited", leases.waited),
        ("outcome", "refused", leases.refused),
    ]
}

impl Memory {
    fn bytes(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in BYTES {
            let mut metric = describe(out, name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            for (device, memory) in &self.0 {
                metric.encode_family(&[("device", &**device)])?.encode_gauge(&read(memory))?;
            }
        }
        let help = "Taken by the driver beside the pool and its budget, as measured once the device was ready: context, libraries, kernels, graphs; absent where unknown";
        let name = "memory_driver";
        let mut metric = describe(out, name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for (device, memory) in &self.0 {
            if let Some(bytes) = memory.pool.driver_bytes {
                metric.encode_family(&[("device", &**device)])?.encode_gauge(&bytes)?;
            }
        }
        let help = "The largest piece that one lease could get: mapped is the largest free slab, mappable what free slabs and unused budget give when mapped together";
        let name = "memory_largest_free";
        let mut metric = describe(out, name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for (device, memory) in &self.0 {
            for (label, value, bytes) in largest_free(memory) {
                let labels = [("device", &**device), (label, value)];
                metric.encode_family(&labels)?.encode_gauge(&bytes)?;
            }
        }
        Ok(())
    }

    fn numbers(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in COUNTS {
            let mut metric = describe(out, name, help, None, MetricType::Gauge)?;
            for (device, memory) in &self.0 {
                metric.encode_family(&[("device", &**device)])?.encode_gauge(&read(memory))?;
            }
        }
        for (name, help, read) in RATIOS {
            let mut metric = describe(out, name, help, None, MetricType::Gauge)?;
            for (device, memory) in &self.0 {
                if let Some(ratio) = read(memory) {
                    metric.encode_family(&[("device", &**device)])?.encode_gauge(&ratio)?;
                }
            }
        }
        Ok(())
    }

    fn counters(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in COUNTERS {
            let mut metric = describe(out, name, help, None, MetricType::Counter)?;
            for (device, memory) in &self.0 {
                count(&mut metric, &[("device", &**device)], read(memory))?;
            }
        }
        let help = "Given back to the device, whole slabs or parts";
        let name = "memory_given_back";
        let mut metric = describe(out, name, help, Some(&Unit::Bytes), MetricType::Counter)?;
        for (device, memory) in &self.0 {
            count(&mut metric, &[("device", &**device)], memory.pool.given_back_bytes)?;
        }
        let help = "Leases by outcome: warm (a free slab), grown (a slab made or grown for it), waited (those that waited for another lease), refused";
        let mut metric = describe(out, "memory_leases", help, None, MetricType::Counter)?;
        for (device, memory) in &self.0 {
            for (label, value, leases) in leases(memory) {
                count(&mut metric, &[("device", &**device), (label, value)], leases)?;
            }
        }
        let help = "Calls to the system or driver that take or give back memory; none happens while leases are warm";
        let mut metric = describe(out, "memory_driver_calls", help, None, MetricType::Counter)?;
        for (device, memory) in &self.0 {
            for &(call, calls) in &memory.pool.calls {
                count(&mut metric, &[("device", &**device), ("call", call)], calls)?;
            }
        }
        Ok(())
    }

    fn durations(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, unit) = ("memory_lease_duration", Some(&Unit::Seconds));
        let help = "How long a lease took, waiting excluded; one lease in 16 is timed";
        let mut metric = describe(out, name, help, unit, MetricType::Histogram)?;
        for (device, memory) in &self.0 {
            let latency = &memory.pool.latency;
            let bound = |at_most: Option<u64>| at_most.map_or(f64::INFINITY, seconds);
            let buckets: Vec<_> =
                latency.iter().map(|bucket| (bound(bucket.at_most), bucket.leases)).collect();
            let timed = latency.iter().map(|bucket| bucket.leases).sum();
            let sum = seconds(memory.pool.latency_nanoseconds);
            let labels = [("device", &**device)];
            let mut series = metric.encode_family(&labels)?;
            series.encode_histogram::<[(&str, &str); 0]>(sum, timed, &buckets, None)?;
        }
        Ok(())
    }
}

impl Collector for Memory {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.bytes(&mut out)?;
        self.numbers(&mut out)?;
        self.counters(&mut out)?;
        self.durations(&mut out)
    }
}

pub(super) fn describe<'e>(
    out: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    unit: Option<&'e Unit>,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    // As the library ends the help of metrics that are registered.
    out.encode_descriptor(name, &format!("{help}."), unit, kind)
}

pub(super) fn count<const N: usize>(
    metric: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: u64,
) -> fmt::Result {
    let none: Option<&Exemplar<[(&str, &str); 0], f64>> = None;
    metric.encode_family(labels)?.encode_counter(&value, none)
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds below 2⁵²: seven weeks")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests;
