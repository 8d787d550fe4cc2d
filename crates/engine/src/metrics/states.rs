//! What devices say of themselves, as their sensors were read.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use vecmill_backend_cuda::GpuState;

use super::memory::{count, describe};
use super::scheduling::{Gauge, float, gauges};
use crate::info::DeviceName;

/// Devices by name, those that say anything.
#[derive(Debug)]
pub(super) struct States(pub(super) Vec<(DeviceName, GpuState)>);

#[rustfmt::skip] // one metric, one line
const GAUGES: [Gauge<GpuState>; 7] = [
    ("device_temperature", "How hot a device is", Some(Unit::Celsius), |d| d.temperature_celsius.map(f64::from)),
    ("device_power_watts", "Power that a device draws", None, |d| d.power_watts),
    ("device_power_limit_watts", "The most power that a device may draw", None, |d| d.power_limit_watts),
    ("device_clock_hertz", "The clock of a device's multiprocessors", None, |d| d.clock_hertz.map(float)),
    ("device_clock_max_hertz", "The most that the clock of a device's multiprocessors can be", None, |d| d.max_clock_hertz.map(float)),
    ("device_utilization_ratio", "The part of the time in which anything ran on a device, whoever's it was", None, |d| d.utilization),
    ("device_memory_used_by_others", "Memory of a device that other processes use; where the driver does not tell who has what, all that is not in this engine's pools", Some(Unit::Bytes), |d| d.memory?.others_bytes().map(|bytes| float(bytes as u64))),
];

type Counter = (&'static str, &'static str, fn(&GpuState) -> Option<u64>);

#[rustfmt::skip]
const COUNTERS: [Counter; 2] = [
    ("device_ecc_uncorrected_errors", "Errors of a device's memory that could not be corrected, since its driver was loaded", |d| d.ecc_uncorrected_errors),
    ("device_xid_errors", "Errors that the driver has reported of a device, also those that some program caused", |d| d.xid_errors.map(|errors| errors.total)),
];

impl Collector for States {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut out;
        gauges(out, &GAUGES, &self.0)?;
        for (name, help, read) in &COUNTERS {
            let mut metric = describe(out, name, help, None, MetricType::Counter)?;
            for (device, state) in &self.0 {
                if let Some(value) = read(state) {
                    count(&mut metric, &[("device", &**device)], value)?;
                }
            }
        }
        let help = "1 for what slows a device down now: thermal, power_cap or hardware_slowdown";
        let mut metric = describe(out, "device_throttled", help, None, MetricType::Gauge)?;
        for (device, state) in &self.0 {
            for (reason, holds) in
                state.throttling.map_or_else(Vec::new, |why| why.reasons().into())
            {
                let labels = [("device", &**device), ("reason", reason)];
                metric.encode_family(&labels)?.encode_gauge(&i64::from(holds))?;
            }
        }
        Ok(())
    }
}
