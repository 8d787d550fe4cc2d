//! How each device stands with the scheduler, read from it when metrics are asked for.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use vecmill_scheduler::{DeviceStatistics, Health};

use super::memory::{count, describe};
use crate::info::DeviceName;

/// Devices by name.
#[derive(Debug)]
pub(super) struct Scheduling(pub(super) Vec<(DeviceName, DeviceStatistics)>);

/// A figure's name, help, unit, and how it is read.
type Metric<T, V> = (&'static str, &'static str, Option<Unit>, fn(&T) -> V);

/// A figure that is left out while it is not known.
pub(super) type Gauge<T> = Metric<T, Option<f64>>;

#[rustfmt::skip] // one metric, one line
const GAUGES: [Gauge<DeviceStatistics>; 12] = [
    ("device_in_service", "1 while others may rely on a device for what waits, 0 once it is out, drained or gone", None, |d| Some(f64::from(serves(d)))),
    ("device_weight_ratio", "A device's share of the tokens per second of all that serve, as learned", None, |d| Some(d.weight)),
    ("device_batch_cost", "A of the learned seconds = A + B * tokens + C * sum of squared lengths", Some(Unit::Seconds), |d| d.speed.map(|speed| speed.fixed)),
    ("device_token_cost", "B of the learned seconds = A + B * tokens + C * sum of squared lengths", Some(Unit::Seconds), |d| d.speed.map(|speed| speed.per_token)),
    ("device_square_cost", "C of the learned seconds = A + B * tokens + C * sum of squared lengths", Some(Unit::Seconds), |d| d.speed.map(|speed| speed.per_square)),
    ("device_prediction_error_ratio", "How far predictions of a batch's time are off of late, relative to the time", None, |d| d.speed.map(|_| d.mean_error)),
    ("device_batch_limit_tokens", "The most tokens of a batch", None, |d| Some(float(d.batch_tokens as u64))),
    ("device_running_batches", "Batches that a device has taken and not finished", None, |d| Some(float(d.running_batches as u64))),
    ("device_running_tokens", "Tokens of the batches that a device has taken and not finished", None, |d| Some(float(d.running_tokens as u64))),
    ("device_assigned_tokens", "Tokens that wait for this device alone", None, |d| Some(float(d.assigned_tokens as u64))),
    ("device_backlog", "When a device will probably be done with what it runs and what waits for it alone", Some(Unit::Seconds), |d| Some(d.backlog.as_secs_f64())),
    ("device_last_prediction_error_ratio", "How far the last prediction was off, relative to the time; above 0 if the batch took longer", None, |d| d.speed.map(|_| d.last_error)),
];

#[rustfmt::skip]
const COUNTERS: [Metric<DeviceStatistics, u64>; 4] = [
    ("device_failures", "Batches that a device failed at", None, |d| d.failures),
    ("device_stalls", "Times that a device did not move and was taken out for it", None, |d| d.stalls),
    ("device_moved_inputs", "Inputs that waited for a device and were moved to others", None, |d| d.moved),
    ("device_retried_inputs", "Inputs that a device failed at and that were queued once more", None, |d| d.retried),
];

const HEALTHS: [Health; 6] = [
    Health::Serving,
    Health::Suspect,
    Health::Out,
    Health::Draining,
    Health::Drained,
    Health::Gone,
];

fn serves(device: &DeviceStatistics) -> bool {
    matches!(device.health, Health::Serving | Health::Suspect)
}

impl Collector for Scheduling {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut out;
        gauges(out, &GAUGES, &self.0)?;
        for (name, help, unit, read) in &COUNTERS {
            let mut metric = describe(out, name, help, unit.as_ref(), MetricType::Counter)?;
            for (device, statistics) in &self.0 {
                count(&mut metric, &[("device", &**device)], read(statistics))?;
            }
        }
        // Its rate over time is how busy the device is.
        let help = "Time that a device took for batches";
        let mut metric =
            describe(out, "device_busy", help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (device, statistics) in &self.0 {
            let labels = [("device", &**device)];
            let seconds = statistics.busy.as_secs_f64();
            let none: Option<
                &prometheus_client::metrics::exemplar::Exemplar<[(&str, &str); 0], f64>,
            > = None;
            metric.encode_family(&labels)?.encode_counter(&seconds, none)?;
        }
        let help = "1 for the state that a device is in: serving, suspect (it failed at its last batch), out (it kept failing, and is tried again now and then), draining or drained (by an operator), gone (its thread has ended, for good)";
        let mut metric = describe(out, "device_health", help, None, MetricType::Gauge)?;
        for (device, statistics) in &self.0 {
            for health in HEALTHS {
                let labels = [("device", &**device), ("state", health.name())];
                let value = i64::from(health == statistics.health);
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// Writes a figure per device, as far as they are known.
pub(super) fn gauges<T>(
    out: &mut DescriptorEncoder<'_>,
    figures: &[Gauge<T>],
    devices: &[(DeviceName, T)],
) -> fmt::Result {
    for (name, help, unit, read) in figures {
        let mut metric = describe(out, name, help, unit.as_ref(), MetricType::Gauge)?;
        for (device, of) in devices {
            if let Some(value) = read(of) {
                let labels = [("device", &**device)];
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
