//! What a simulation makes of a real experiment: the devices that a `vecmill ab` ran on, by what the
//! scheduler had learned of them, under the very same requests.
//!
//! The choice behind it: a device's figures are those of all passes together, so that the policies are
//! predicted from the same devices, and differ by what they decide alone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use vecmill_lab::ab::{
    DeviceLimits, Fate, Figures, Learned, MAKESPAN, MEAN, MadeOf, Metric, P50, P99, Record,
    RecordError, Requests, Sent, THROUGHPUT, WAITING, Work,
};
use vecmill_lab::results;
use vecmill_lab::traffic::{Mix, Traffic};
use vecmill_scheduler::{Coefficients, Priority, Size, Speed};

use super::device::Device;
use super::read;
use super::world::{Experiment, World};
use crate::Outcome;

/// What is predicted, beside what the devices do: of a load that comes in time, and of bulk work.
const OPEN: &[Metric] = &[THROUGHPUT, WAITING, MEAN, P50, P99];
const BULK: &[Metric] = &[MAKESPAN, THROUGHPUT];

/// A pass of more requests is a mistake.
const MOST_REQUESTS: f64 = 1e8;

/// The mean distance of a normal distribution from its centre, in standard deviations.
const MEAN_DISTANCE: f64 = 0.8;

/// Arguments of `vecmill-bench predict`.
#[derive(Debug, Args)]
pub(crate) struct PredictArguments {
    /// What vecmill ab --json has written
    #[arg(value_name = "FILE")]
    figures: PathBuf,
    /// File with the requests, if they were those of a trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The most tokens of each device's batches, for files of versions that didn't keep it
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,
    /// File to write the table to, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
enum PredictError {
    #[error("{}: {source}", path.display())]
    Record { path: PathBuf, source: RecordError },
    #[error(
        "the file doesn't say how large batches may be, as those of earlier versions: give --batch-tokens"
    )]
    NoLimits,
    #[error("expected limits of {expected} devices, found those of {found}")]
    Limits { expected: usize, found: usize },
    #[error(
        "nothing is known of the speed of {0}: expected batches, or a sound `learned`, in its passes"
    )]
    NoSpeed(String),
    #[error("its requests were those of a trace: give it with --trace")]
    NoTrace,
    #[error(
        "expected requests per second, and up to {MOST_REQUESTS} of them, found {per_second} for {seconds} s"
    )]
    Requests { per_second: f64, seconds: f64 },
}

/// A figure of a policy.
#[derive(Debug, Clone, Serialize)]
struct Row {
    policy: String,
    figure: String,
    predicted: f64,
    measured: f64,
    ratio: f64,
}

/// Predicts and prints a table.
pub(crate) fn predict(arguments: &PredictArguments) -> Outcome {
    let path = &arguments.figures;
    let record =
        Record::read(path).map_err(|source| PredictError::Record { path: path.clone(), source })?;
    let rows = Prediction::new(&record, arguments)?.rows()?;
    let table = table(&rows);
    results::line(table.trim_end())?;
    if let Some(file) = &arguments.markdown {
        fs::write(file, table)?;
    }
    results::write(arguments.output.as_deref(), "simulated", &rows)
}

/// An experiment to be predicted.
struct Prediction<'a> {
    record: &'a Record,
    devices: Vec<Device>,
    trace: Option<Traffic>,
    mix: Mix,
    /// `None` where they come all at once.
    per_second: Option<f64>,
    drain: f64,
}

impl<'a> Prediction<'a> {
    fn new(
        record: &'a Record,
        arguments: &PredictArguments,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let MadeOf { drain_seconds, requests, devices } = match &record.made_of {
            Some(made_of) => made_of.clone(),
            None => usual(record, arguments.batch_tokens.ok_or(PredictError::NoLimits)?),
        };
        let Requests { per_second, large, longest, of_trace } = requests;
        if of_trace && arguments.trace.is_none() {
            return Err(PredictError::NoTrace.into());
        }
        let prediction = Self {
            record,
            devices: all_devices(record, &devices)?,
            trace: arguments.trace.as_deref().map(read).transpose()?,
            mix: Mix { large, longest, seed: record.seed },
            per_second,
            drain: drain_seconds,
        };
        let Some(per_second) = per_second else { return Ok(prediction) };
        let seconds =
            record.passes.iter().map(|pass| prediction.window(pass).1).fold(0.0, f64::max);
        if !(per_second > 0.0 && per_second * seconds <= MOST_REQUESTS) {
            return Err(PredictError::Requests { per_second, seconds }.into());
        }
        Ok(prediction)
    }

    /// A pass's requests.
    fn traffic(&self, measured: &Figures) -> Traffic {
        let repeat = measured.repeat as u64;
        match (&self.trace, self.per_second) {
            (Some(trace), Some(per_second)) => {
                trace.clone().cut(self.mix.longest).of_requests(per_second)
            }
            (None, Some(per_second)) => {
                Traffic::poisson(self.mix, repeat, per_second, self.window(measured).1)
            }
            (_, None) => Traffic::bulk(self.mix, repeat, measured.requests),
        }
    }

    /// Between which seconds a pass counts.
    fn window(&self, pass: &Figures) -> (f64, f64) {
        let warm_up = self.record.warm_up_seconds;
        (warm_up, warm_up + pass.seconds)
    }

    fn rows(&self) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
        let mut rows = Vec::new();
        for policy in &self.record.policies {
            let measured: Vec<&Figures> = self.record.passes_of(policy).collect();
            let predicted =
                measured.iter().map(|pass| self.pass(pass)).collect::<Result<Vec<_>, _>>()?;
            let mut row = |figure: String, of: &dyn Fn(&Figures) -> f64| {
                let count = measured.len() as f64;
                let predicted = predicted.iter().map(of).sum::<f64>() / count;
                let measured = measured.iter().map(|pass| of(pass)).sum::<f64>() / count;
                let ratio = predicted / measured;
                rows.push(Row { policy: policy.clone(), figure, predicted, measured, ratio });
            };
            for metric in if self.per_second.is_some() { OPEN } else { BULK } {
                row(format!("{} ({})", metric.name, metric.unit), &metric.of);
            }
            for (index, device) in measured[0].devices.iter().enumerate() {
                let name = &device.name;
                row(format!("busy share of {name} (%)"), &|pass| {
                    100.0 * pass.devices[index].busy_share
                });
                row(format!("tokens of {name} (1/s)"), &|pass| {
                    pass.devices[index].tokens as f64 / pass.seconds
                });
            }
        }
        Ok(rows)
    }

    /// What a pass should have shown.
    fn pass(&self, measured: &Figures) -> Result<Figures, Box<dyn std::error::Error>> {
        let at_once = self.per_second.is_none();
        let (from, to) = if at_once { (0.0, f64::INFINITY) } else { self.window(measured) };
        let traffic = self.traffic(measured);
        let experiment = Experiment {
            devices: &self.devices,
            policy: &measured.policy,
            seed: self.mix.seed.wrapping_add(measured.repeat as u64),
            requests: u32::try_from(traffic.arrivals.len())?,
            priority: Priority::Interactive,
            span: f64::INFINITY,
            window: (from, to),
        };
        let outcome = World::new(experiment)?.run(traffic.arrivals.iter().cloned());
        // Bulk work is waited for.
        let end = if at_once { f64::INFINITY } else { traffic.seconds() + self.drain };
        let sent = outcome.answers.iter().map(|answer| {
            let request = &traffic.arrivals[answer.request as usize];
            let (latency, left) = (f64::from(answer.latency), end - request.at);
            let (fate, waiting) = match latency <= left {
                true => (Fate::Answered, f64::from(answer.taken)),
                false => (Fate::Unanswered, left),
            };
            let (at, tokens) = (request.at, request.tokens());
            Sent { at, late: 0.0, latency: latency.min(left), waiting, tokens, fate }
        });
        let shares = outcome.busy();
        let work = outcome.devices.iter().zip(shares).map(|(done, share)| Work {
            share,
            tokens: done.tokens,
            batches: done.batches,
            ..Work::default()
        });
        let sent: Vec<_> = sent.collect();
        let makespan = || sent.iter().map(Sent::answered).fold(0.0, f64::max);
        let to = if at_once { makespan() } else { to };
        Ok(Figures::new(&sent, work.collect(), (from, to)))
    }
}

/// What an experiment was made of whose file doesn't say so: the usual requests, at the rate at which
/// they came.
fn usual(record: &Record, batch_tokens: usize) -> MadeOf {
    let limits = |name: &str| DeviceLimits { name: name.to_owned(), batch_tokens, in_flight: 2 };
    let requests: usize = record.passes.iter().map(|pass| pass.requests).sum();
    let seconds: f64 = record.passes.iter().map(|pass| pass.seconds).sum();
    let devices = record.passes.first().map_or(&[][..], |pass| &pass.devices);
    MadeOf {
        drain_seconds: 10.0,
        requests: Requests {
            per_second: Some(requests as f64 / seconds),
            large: super::LARGE,
            longest: super::LONGEST,
            of_trace: false,
        },
        devices: devices.iter().map(|device| limits(&device.name)).collect(),
    }
}

fn all_devices(record: &Record, limits: &[DeviceLimits]) -> Result<Vec<Device>, PredictError> {
    let expected = record.passes.first().map_or(0, |pass| pass.devices.len());
    if limits.len() != expected {
        return Err(PredictError::Limits { expected, found: limits.len() });
    }
    let device = |(index, limits): (usize, &DeviceLimits)| {
        let (model, noise) = learned(record, index)
            .or_else(|| fitted(record, index, limits.batch_tokens))
            .filter(|(model, _)| model.are_sound())
            .ok_or_else(|| PredictError::NoSpeed(limits.name.clone()))?;
        let &DeviceLimits { batch_tokens, in_flight, .. } = limits;
        Ok(Device { model, batch_tokens, in_flight: in_flight.max(1), noise, mishap: None })
    };
    limits.iter().enumerate().map(device).collect()
}

/// What the scheduler had learned of a device after each pass, and how far it was off: the medians, for
/// whatever disturbs one pass.
fn learned(record: &Record, device: usize) -> Option<(Coefficients, f64)> {
    let all: Vec<_> =
        record.passes.iter().filter_map(|pass| pass.devices[device].learned).collect();
    let median = |of: fn(&Learned) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let model = Coefficients {
        fixed: median(|learned| learned.fixed),
        per_token: median(|learned| learned.per_token),
        per_square: median(|learned| learned.per_square),
    };
    let noise = median(|learned| learned.mean_error) / MEAN_DISTANCE;
    (!all.is_empty()).then_some((model, noise))
}

/// The same, from full batches when all devices are busy and the mean batch of each pass, which say
/// nothing about lengths.
fn fitted(record: &Record, device: usize, full: usize) -> Option<(Coefficients, f64)> {
    let mut speed = Speed::new();
    let mut observe = |tokens: f64, seconds: f64| {
        let size = Size { inputs: 1, tokens: results::whole(tokens) as usize, squares: 0.0 };
        Duration::try_from_secs_f64(seconds).map(|seconds| speed.observe(size, seconds)).ok()
    };
    if let Some(capacity) = &record.capacity {
        let full = full as f64;
        observe(full, full / capacity.devices.get(device)?.own_speed)?;
    }
    for pass in &record.passes {
        let done = &pass.devices[device];
        if done.batches > 0 {
            let batches = done.batches as f64;
            observe(done.tokens as f64 / batches, done.busy_share * pass.seconds / batches)?;
        }
    }
    Some((speed.coefficients()?, super::device::NOISE))
}

/// The rows as Markdown.
fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| policy | figure | predicted | measured | ratio |\n|---|---|---:|---:|---:|\n",
    );
    for Row { policy, figure, predicted, measured, ratio } in rows {
        let numbers = [predicted, measured].map(|value| results::number(*value));
        table +=
            &format!("| {policy} | {figure} | {} | {} | {ratio:.2} |\n", numbers[0], numbers[1]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(file: &str) -> PredictArguments {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benchmarks/results");
        PredictArguments {
            figures: PathBuf::from(folder).join(file),
            trace: None,
            batch_tokens: Some(4096),
            markdown: None,
            output: None,
        }
    }

    fn error(arguments: &PredictArguments) -> String {
        predict(arguments).unwrap_err().to_string()
    }

    #[test]
    fn what_parts_of_a_gpu_did_under_two_policies_is_predicted() {
        let arguments = arguments("2026-11-24-scheduler-ab-parts.json");
        let record = Record::read(&arguments.figures).unwrap();
        let rows = Prediction::new(&record, &arguments).unwrap().rows().unwrap();
        for row in &rows {
            let most = match row.figure.as_str() {
                figure if figure.contains("tokens") => 0.1,
                figure if figure.starts_with("busy") => 0.02,
                _ => 0.35,
            };
            assert!((row.ratio - 1.0).abs() < most, "{row:?}");
        }
        assert_eq!(rows.len(), 2 * (5 + 2 * 3));
        assert!(table(&rows).contains("| round-robin | throughput (tokens/s) | 1,6"));
    }

    #[test]
    fn what_bulk_work_took_on_parts_of_a_gpu_is_predicted() {
        let arguments = arguments("2026-11-24-scheduler-ab-bulk.json");
        let record = Record::read(&arguments.figures).unwrap();
        let rows = Prediction::new(&record, &arguments).unwrap().rows().unwrap();
        assert_eq!(rows.len(), 2 * (2 + 2 * 3));
        for row in rows.iter().filter(|row| !row.figure.contains("cuda")) {
            assert!((row.ratio - 1.0).abs() < 0.1, "{row:?}");
        }
    }

    #[test]
    fn what_a_prediction_lacks_is_named() {
        let of = |batch_tokens| PredictArguments {
            batch_tokens,
            ..arguments("2026-11-24-scheduler-ab-control.json")
        };
        assert!(error(&of(None)).contains("give --batch-tokens"));
        let other = arguments("2026-11-24-scheduler-simulated.json");
        assert!(error(&other).contains("expected the figures of vecmill ab --json"));

        let mut record = Record::read(&of(None).figures).unwrap();
        let mut made_of = usual(&record, 4096);
        let mut with = |change: fn(&mut MadeOf)| {
            change(&mut made_of);
            record.made_of = Some(made_of.clone());
            Prediction::new(&record, &of(None)).err().unwrap().to_string()
        };
        assert!(with(|of| of.requests.of_trace = true).contains("--trace"));
        assert!(
            with(|of| {
                of.requests = Requests { per_second: Some(1e300), of_trace: false, ..of.requests };
            })
            .contains("requests per second")
        );
        assert!(with(|of| of.devices.truncate(1)).contains("limits of 2 devices"));
    }
}
