//! What is compared, under which load.

use std::time::Duration;

use vecmill_scheduler::policy::PolicyName;

use super::error::AbError;
use super::find_max::LOADS;
use crate::lengths::SHORTEST;
use crate::traffic::{Mix, Traffic};

/// A comparison of policies.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The policies by name; the first is what the others are compared with.
    pub policies: Vec<String>,
    /// The requests of a trace, instead of made ones.
    pub trace: Option<Traffic>,
    /// What made requests look like.
    pub mix: Mix,
    /// How many requests, how fast.
    pub load: Load,
    /// Seconds of a pass that count; a trace has its own.
    pub seconds: f64,
    /// Seconds of a pass before that, which are dropped.
    pub warm_up: f64,
    /// How long answers may take beyond the last request. What takes longer is given up, and counts as
    /// taking as long.
    pub drain: Duration,
    /// Passes of each policy.
    pub repeats: usize,
    /// The latency that the 99th percentile must keep.
    pub slo: Option<Duration>,
    /// Look for the highest load at which each policy keeps that.
    pub find_max: bool,
    /// Measure each device alone, too.
    pub interference: bool,
}

/// How many requests, how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many requests per second.
    Rate(f64),
    /// This part of the tokens per second that the devices sustain.
    Sustained(f64),
    /// As the trace has it.
    Recorded,
    /// So many requests, all at once.
    Bulk(usize),
}

impl Experiment {
    /// Checks what can be known to be wrong before a model is loaded.
    ///
    /// # Errors
    /// [`AbError`] says what to give instead.
    pub fn check(&self) -> Result<(), AbError> {
        let mut distinct = self.policies.clone();
        distinct.sort();
        distinct.dedup();
        if distinct.len() < 2 || distinct.len() < self.policies.len() {
            return Err(AbError::TooFewPolicies { found: distinct.len() });
        }
        for name in &self.policies {
            name.parse::<PolicyName>().map_err(|error| AbError::unknown_policy(error.0))?;
        }
        self.check_load()
    }

    /// Checks what concerns the requests alone.
    ///
    /// # Errors
    /// [`AbError`] says what to give instead.
    pub fn check_load(&self) -> Result<(), AbError> {
        let (rate, load, bulk) = match self.load {
            Load::Rate(rate) => (rate, 1.0, 1),
            Load::Sustained(load) => (1.0, load, 1),
            Load::Bulk(requests) => (1.0, 1.0, requests),
            Load::Recorded => (1.0, 1.0, 1),
        };
        let above_zero = "a number above 0";
        for (flag, found, right, expected) in [
            ("--rate", rate, rate > 0.0 && rate.is_finite(), above_zero),
            ("--load", load, load > 0.0 && load <= 10.0, "a part of the capacity, such as 0.8"),
            ("--bulk", bulk as f64, bulk > 0, "a number of requests above 0"),
            ("--seconds", self.seconds, self.seconds > 0.0 && self.seconds <= 86_400.0, above_zero),
            ("--settle", self.warm_up, (0.0..=3600.0).contains(&self.warm_up), "0 or more seconds"),
            ("--repeats", self.repeats as f64, self.repeats >= 2, "2 or more; 5 to conclude from"),
            (
                "--large",
                self.mix.large,
                (0.0..=1.0).contains(&self.mix.large),
                "a part from 0 to 1",
            ),
            (
                "--longest",
                self.mix.longest as f64,
                self.mix.longest >= SHORTEST,
                "3 or more tokens, which the shortest inputs have",
            ),
        ] {
            if !right {
                return Err(AbError::Number { flag, expected, found });
            }
        }
        Ok(())
    }

    /// How many requests per second such a load is, with devices that can do so many tokens per
    /// second.
    pub(super) fn requests_per_second(&self, load: Load, capacity: f64) -> f64 {
        let tokens = match &self.trace {
            Some(trace) => trace.tokens() as f64 / trace.arrivals.len() as f64,
            None => self.mix.mean_tokens(),
        };
        match (load, &self.trace) {
            (Load::Rate(rate), _) => rate,
            (Load::Recorded, Some(trace)) => trace.arrivals.len() as f64 / trace.seconds(),
            (Load::Sustained(part), _) => part * capacity / tokens,
            (Load::Recorded | Load::Bulk(_), _) => capacity / tokens,
        }
    }

    /// Seconds of a measurement that are dropped, and that count.
    pub(super) fn times(&self) -> (f64, f64) {
        (self.warm_up, self.seconds)
    }

    /// The same for a model that takes inputs of so many tokens.
    pub(super) fn within(&self, longest: usize) -> Self {
        let mix = Mix { longest: self.mix.longest.min(longest), ..self.mix };
        let trace = self.trace.clone().map(|trace| trace.cut(longest));
        Self { mix, trace, ..self.clone() }
    }

    /// Whether it must be known what the devices can do.
    pub(super) fn needs_capacity(&self) -> bool {
        let by_load = matches!(self.load, Load::Sustained(_) | Load::Bulk(_));
        by_load || self.find_max || self.interference
    }

    /// Legs on so many devices: each is one measurement.
    pub(super) fn legs(&self, devices: usize) -> usize {
        let passes = self.policies.len() * self.repeats;
        let searches = if self.find_max { passes * LOADS } else { 0 };
        let alone = if self.interference { devices } else { 0 };
        usize::from(self.needs_capacity()) + passes + searches + alone
    }
}
