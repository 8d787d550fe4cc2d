//! What an experiment showed, and how sure that is.

use std::io;

use serde::Serialize;
use vecmill_engine::Info;

use super::bootstrap::{self, Estimate};
use super::experiment::{Experiment, Load};
use super::figures::Figures;
use super::find_max::MaxLoad;
use super::metric::{BALANCE, BULK, Metric, OPEN};
use super::record::{DeviceLimits, Requests};
use super::sustained_rate::{Interference, SustainedRate};
use crate::results;

/// Passes of an arm from which on conclusions are drawn.
const ENOUGH: usize = 5;

/// The part of the time that a device is at work which never has to wait.
const SATURATED: f64 = 0.9;

/// Seconds that a generator may be late.
const LATE: f64 = 1e-3;

/// What an experiment showed.
#[derive(Debug)]
pub struct Report {
    pub(super) info: Info,
    pub(super) limits: Vec<DeviceLimits>,
    pub(super) experiment: Experiment,
    pub(super) capacity: Option<SustainedRate>,
    pub(super) passes: Vec<Figures>,
    pub(super) max_loads: Vec<MaxLoad>,
    pub(super) interference: Vec<Interference>,
}

/// A metric of all arms.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) metric: String,
    pub(super) unit: &'static str,
    pub(super) more_is_better: bool,
    /// Of each arm.
    pub(super) means: Vec<Option<Estimate>>,
    /// Of each arm behind the first, relative to that.
    pub(super) ratios: Vec<Option<Estimate>>,
    pub(super) verdicts: Vec<Verdict>,
}

/// What can be said of an arm beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Better,
    Worse,
    /// The interval holds "the same".
    NoDifferenceShown,
    /// There is nothing to divide by.
    NotComparable,
    /// Of fewer passes no interval holds the truth as often as it should.
    TooFewPasses,
}

impl Verdict {
    fn of(ratio: Option<Estimate>, passes: usize, more_is_better: bool) -> Self {
        match ratio {
            None => Self::NotComparable,
            Some(_) if passes < ENOUGH => Self::TooFewPasses,
            Some(ratio) if ratio.low <= 1.0 && ratio.high >= 1.0 => Self::NoDifferenceShown,
            Some(ratio) if (ratio.low > 1.0) == more_is_better => Self::Better,
            Some(_) => Self::Worse,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifferenceShown => "no difference shown",
            Self::NotComparable => "not comparable",
            Self::TooFewPasses => "too few passes",
        }
    }
}

/// All figures, as they are kept.
#[derive(Serialize)]
struct Kept<'a> {
    model: &'a str,
    policies: &'a [String],
    load: String,
    seed: u64,
    warm_up_seconds: f64,
    drain_seconds: f64,
    requests: Requests,
    devices: &'a [DeviceLimits],
    comparison: Vec<Row>,
    verdicts: Vec<String>,
    notes: Vec<String>,
    capacity: &'a Option<SustainedRate>,
    interference: &'a [Interference],
    max_loads: &'a [MaxLoad],
    passes: &'a [Figures],
}

impl Report {
    /// All figures as JSON, with the command, the machine and the date.
    ///
    /// # Errors
    /// None in practice: all of them can be written.
    pub fn json(&self) -> io::Result<String> {
        let Self { experiment, limits, capacity, passes, max_loads, interference, .. } = self;
        let kept = Kept {
            model: &self.info.model_id,
            policies: &experiment.policies,
            load: self.load(),
            seed: experiment.mix.seed,
            warm_up_seconds: experiment.warm_up,
            drain_seconds: experiment.drain.as_secs_f64(),
            requests: self.requests(),
            devices: limits,
            comparison: self.rows(),
            verdicts: self.verdicts(),
            notes: self.notes(),
            capacity,
            interference,
            max_loads,
            passes,
        };
        results::json(&self.devices(), &kept).map_err(io::Error::other)
    }

    /// The command that made this report, the processor, and the date in seconds since 1970.
    pub(super) fn origin(&self) -> results::Origin {
        results::Origin::now()
    }

    fn requests(&self) -> Requests {
        let Experiment { mix, trace, load, .. } = &self.experiment;
        let capacity = self.capacity.as_ref().map_or(0.0, |capacity| capacity.tokens_per_second);
        let rate = self.experiment.requests_per_second(*load, capacity);
        Requests {
            per_second: (!self.is_bulk()).then_some(rate),
            large: mix.large,
            longest: mix.longest,
            of_trace: trace.is_some(),
        }
    }

    /// The devices in words.
    pub(super) fn devices(&self) -> String {
        let device = |device: &vecmill_engine::DeviceSummary| {
            format!("{} ({})", device.name, device.description)
        };
        self.info.devices.iter().map(device).collect::<Vec<_>>().join(", ")
    }

    /// The load in words.
    pub(super) fn load(&self) -> String {
        let Experiment { mix, trace, .. } = &self.experiment;
        let made = format!(
            "one input of about 40 tokens (lognormal, at most {}), {:.0} % of requests 32 of them",
            mix.longest,
            mix.large * 100.0
        );
        let what = trace.as_ref().map_or(made, |trace| {
            format!("a trace of {} requests", results::count(trace.arrivals.len()))
        });
        let capacity = self.capacity.as_ref().map_or(0.0, |capacity| capacity.tokens_per_second);
        let capacity = results::number(capacity);
        match self.experiment.load {
            Load::Rate(rate) => format!("{} requests/s; {what}", results::number(rate)),
            Load::Sustained(part) => {
                format!("{:.0} % of the capacity, {capacity} tokens/s; {what}", part * 100.0)
            }
            Load::Recorded => what,
            Load::Bulk(requests) => {
                format!("{} requests at once; {what}", results::count(requests))
            }
        }
    }

    /// Whether the work came all at once.
    pub(super) fn is_bulk(&self) -> bool {
        matches!(self.experiment.load, Load::Bulk(_))
    }

    /// The metrics that suit the load and the devices.
    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = if self.is_bulk() { BULK.to_vec() } else { OPEN.to_vec() };
        if self.info.devices.len() > 1 {
            metrics.extend(BALANCE);
        }
        metrics
    }

    /// The passes of an arm in the order of their repeats.
    pub(super) fn passes_of(&self, policy: &str) -> Vec<&Figures> {
        let mut passes: Vec<&Figures> =
            self.passes.iter().filter(|pass| pass.policy == policy).collect();
        passes.sort_by_key(|pass| pass.repeat);
        passes
    }

    /// What a metric was in each pass of an arm.
    pub(super) fn values(&self, metric: Metric, policy: &str) -> Vec<f64> {
        self.passes_of(policy).into_iter().map(metric.of).collect()
    }

    /// The highest loads found for an arm, in per cent of the capacity.
    pub(super) fn max_loads_of(&self, policy: &str) -> Vec<f64> {
        let mut found: Vec<&MaxLoad> =
            self.max_loads.iter().filter(|found| found.policy == policy).collect();
        found.sort_by_key(|found| found.repeat);
        found.into_iter().map(|found| found.load * 100.0).collect()
    }

    /// What was promised, in words: `p99 within 100 ms`.
    pub(super) fn promise(&self) -> Option<String> {
        let slo = self.experiment.slo?;
        Some(format!("p99 within {} ms", slo.as_secs_f64() * 1e3))
    }

    /// Each metric of all arms, and how the arms differ.
    pub(super) fn rows(&self) -> Vec<Row> {
        let policies = &self.experiment.policies;
        let of = |metric: &Metric| {
            let values: Vec<Vec<f64>> =
                policies.iter().map(|policy| self.values(*metric, policy)).collect();
            Row::new(metric.name.to_owned(), metric.unit, metric.more_is_better, &values)
        };
        let mut rows: Vec<Row> = self.metrics().iter().map(of).collect();
        if let Some(promise) = self.promise().filter(|_| !self.max_loads.is_empty()) {
            let values: Vec<Vec<f64>> =
                policies.iter().map(|policy| self.max_loads_of(policy)).collect();
            let name = format!("highest load, {promise}");
            rows.push(Row::new(name, "% of capacity", true, &values));
        }
        rows
    }

    /// A sentence for each arm behind the first, which claims no more than the intervals allow.
    pub(super) fn verdicts(&self) -> Vec<String> {
        let rows = self.rows();
        let policies = &self.experiment.policies;
        let verdict = |arm: usize| {
            let named = |verdict: Verdict| {
                let of = rows.iter().filter(|row| row.verdicts[arm] == verdict);
                of.map(|row| row.metric.as_str()).collect::<Vec<_>>().join(", ")
            };
            let kinds = [Verdict::Better, Verdict::Worse, Verdict::NoDifferenceShown];
            let found: Vec<String> = kinds
                .into_iter()
                .map(|kind| (kind, named(kind)))
                .filter(|(_, names)| !names.is_empty())
                .map(|(kind, names)| format!("{} in {names}", kind.words()))
                .collect();
            let found =
                if found.is_empty() { "nothing can be said".into() } else { found.join("; ") };
            format!("{} beside {}: {found}.", policies[arm + 1], policies[0])
        };
        (0..policies.len() - 1).map(verdict).collect()
    }

    /// What a reader must know before believing it.
    pub(super) fn notes(&self) -> Vec<String> {
        let Experiment { repeats, policies, .. } = &self.experiment;
        let mut notes = vec![format!(
            "Intervals hold the truth in 95 of 100 experiments each, not all of them at once: bootstrap over \
             {repeats} passes of each policy, paired by their requests."
        )];
        if *repeats < ENOUGH {
            notes.push(format!(
                "Of {repeats} passes nothing can be concluded: take {ENOUGH} or more."
            ));
        }
        if self.is_emulated() {
            notes.push(
                "Emulated heterogeneity: parts of one GPU share memory bandwidth, caches, copy engines and clocks."
                    .into(),
            );
        }
        for device in self.capacity.iter().flat_map(|capacity| &capacity.devices) {
            if device.busy_share < SATURATED {
                notes.push(format!(
                    "{} was at work for {:.0} % of the measurement of the capacity only, which may so be too low.",
                    device.name,
                    device.busy_share * 100.0
                ));
            }
        }
        for policy in policies {
            let passes = self.passes_of(policy);
            let sum = |of: fn(&Figures) -> usize| passes.iter().map(|pass| of(pass)).sum::<usize>();
            let (requests, lost) = (sum(|pass| pass.requests), sum(Figures::lost));
            if lost > 0 {
                let (refused, failed) = (sum(|pass| pass.refused), sum(|pass| pass.failed));
                notes.push(format!(
                    "{policy}: {lost} of {requests} requests got no answer in time ({refused} refused, {failed} failed); \
                     they count with the time until they were given up, so its true latencies are higher."
                ));
            }
        }
        let late = self.passes.iter().map(|pass| pass.p99_late).fold(0.0, f64::max);
        if late > LATE && !self.is_bulk() {
            notes.push(format!(
                "The generator sent 1 % of a pass's requests more than {:.1} ms late; latencies count from when they were due.",
                late * 1e3
            ));
        }
        notes
    }

    /// Whether parts of a GPU stand for devices.
    pub(super) fn is_emulated(&self) -> bool {
        self.info.devices.iter().any(|device| device.name.contains("/sms="))
    }
}

impl Row {
    fn new(metric: String, unit: &'static str, more_is_better: bool, arms: &[Vec<f64>]) -> Self {
        let means = arms.iter().map(|values| bootstrap::mean(values)).collect();
        let ratios: Vec<Option<Estimate>> =
            arms.iter().skip(1).map(|values| bootstrap::ratio(values, &arms[0])).collect();
        let verdict = |ratio: &Option<Estimate>| Verdict::of(*ratio, arms[0].len(), more_is_better);
        let verdicts = ratios.iter().map(verdict).collect();
        Self { metric, unit, more_is_better, means, ratios, verdicts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(more_is_better: bool, values: [f64; 5], base: [f64; 5]) -> Row {
        Row::new("x".into(), "", more_is_better, &[base.into(), values.into()])
    }

    #[test]
    fn a_verdict_needs_an_interval_that_leaves_the_same_out() {
        let base = [10.0, 11.0, 9.0, 10.5, 9.5];
        let (less, noise) = (base.map(|value| value * 0.8), [11.0, 10.0, 10.0, 9.0, 10.5]);
        assert_eq!(row(false, less, base).verdicts, [Verdict::Better]);
        assert_eq!(row(true, less, base).verdicts, [Verdict::Worse]);
        assert_eq!(row(true, noise, base).verdicts, [Verdict::NoDifferenceShown]);
        assert_eq!(row(true, base, base).verdicts, [Verdict::NoDifferenceShown]);
        assert_eq!(row(true, base, [0.0; 5]).verdicts, [Verdict::NotComparable]);
        let few = Row::new("x".into(), "", true, &[base[..4].into(), less[..4].into()]);
        assert_eq!(few.verdicts, [Verdict::TooFewPasses]);
    }
}
