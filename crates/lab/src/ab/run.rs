//! Takes the passes.

use std::time::Duration;

use vecmill_engine::{Builder, Engine, UnknownPolicy};

use super::error::AbError;
use super::experiment::{Experiment, Load};
use super::figures::Figures;
use super::find_max::{self, MaxLoad, holds};
use super::generator::Generator;
use super::order::turns;
use super::pass;
use super::record::DeviceLimits;
use super::report::Report;
use super::sustained_rate::{self, Interference, SustainedRate};
use crate::traffic::Traffic;

/// Inputs that may wait: an arm that falls behind shall show it in its latency, not refuse.
const QUEUE: usize = 1 << 24;

/// How far an experiment is: a leg is one measurement.
#[derive(Debug, Clone)]
pub struct Leg {
    /// Legs that are done.
    pub done: usize,
    /// Legs in all.
    pub total: usize,
    /// What is done now.
    pub what: String,
}

/// Starts the engine that `builder` describes and runs an experiment on it. `progress` is told what is
/// done now.
///
/// # Errors
/// [`AbError`] says what is wrong and what to do.
pub fn run(
    builder: Builder,
    experiment: &Experiment,
    progress: &dyn Fn(Leg),
) -> Result<Report, AbError> {
    experiment.check()?;
    let engine = builder.warm_up(true).queue_capacity(QUEUE).start()?;
    let info = engine.info().clone();
    let limits = engine.scheduling().into_iter().map(DeviceLimits::from).collect();
    let experiment = experiment.within(info.max_input_tokens);
    let mut legs = Legs { done: 0, total: experiment.legs(info.devices.len()), progress };
    let laboratory = Laboratory::prepare(&engine, &experiment, &mut legs)?;
    let interference = laboratory.interference(&mut legs)?;
    let passes = laboratory.passes(&mut legs)?;
    let max_loads = laboratory.max_loads(&mut legs)?;
    let capacity = laboratory.capacity;
    Ok(Report { info, limits, experiment, capacity, passes, max_loads, interference })
}

struct Legs<'a> {
    done: usize,
    total: usize,
    progress: &'a dyn Fn(Leg),
}

impl Legs<'_> {
    fn begin(&mut self, what: String) {
        (self.progress)(Leg { done: self.done, total: self.total, what });
        self.done += 1;
    }
}

/// An engine, and what it can do.
struct Laboratory<'a> {
    generator: Generator<'a>,
    experiment: &'a Experiment,
    capacity: Option<SustainedRate>,
}

impl<'a> Laboratory<'a> {
    fn prepare(
        engine: &'a Engine,
        experiment: &'a Experiment,
        legs: &mut Legs<'_>,
    ) -> Result<Self, AbError> {
        let generator = Generator::new(engine)?;
        let mut capacity = None;
        if experiment.needs_capacity() {
            legs.begin("what the devices can do".into());
            capacity =
                Some(SustainedRate::measure(&generator, experiment.mix, experiment.times())?);
        }
        Ok(Self { generator, experiment, capacity })
    }

    fn interference(&self, legs: &mut Legs<'_>) -> Result<Vec<Interference>, AbError> {
        let Self { generator, experiment, capacity: Some(together) } = self else {
            return Ok(Vec::new());
        };
        // A lone device is alone already.
        if !experiment.interference || together.devices.len() < 2 {
            return Ok(Vec::new());
        }
        sustained_rate::interference(generator, together, |name| {
            legs.begin(format!("{name} alone"));
            SustainedRate::measure(generator, experiment.mix, experiment.times())
        })
    }

    fn passes(&self, legs: &mut Legs<'_>) -> Result<Vec<Figures>, AbError> {
        let experiment = self.experiment;
        let mut passes = Vec::new();
        for turn in turns(experiment.policies.len(), experiment.repeats) {
            let policy = &experiment.policies[turn.arm];
            legs.begin(format!("{policy}, {} of {}", turn.repeat + 1, experiment.repeats));
            self.choose(policy)?;
            let figures = match experiment.load {
                Load::Bulk(requests) => {
                    let mix = (experiment.mix, turn.repeat as u64);
                    pass::bulk(&self.generator, mix, requests)?
                }
                load => {
                    let traffic = self.traffic(load, turn.repeat as u64);
                    self.open(&traffic, experiment.drain)?
                }
            };
            let own_speeds = match experiment.load {
                Load::Bulk(_) => self.capacity.as_ref().map(SustainedRate::own_speeds),
                _ => None,
            };
            let efficiency = own_speeds.map(|speeds| figures.tokens_per_second / speeds);
            let (policy, repeat) = (policy.clone(), turn.repeat);
            if figures.requests == figures.lost() {
                return Err(AbError::NoAnswers { what: format!("a pass of {policy}") });
            }
            passes.push(Figures { policy, repeat, efficiency, ..figures });
        }
        Ok(passes)
    }

    fn max_loads(&self, legs: &mut Legs<'_>) -> Result<Vec<MaxLoad>, AbError> {
        let experiment = self.experiment;
        let Some(slo) = experiment.slo.filter(|_| experiment.find_max) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for turn in turns(experiment.policies.len(), experiment.repeats) {
            let (policy, repeat) = (experiment.policies[turn.arm].clone(), turn.repeat);
            let load = find_max::search(|load| {
                legs.begin(format!("{policy} at {:.0} % of the capacity", load * 100.0));
                self.choose(&policy)?;
                let traffic = self.traffic(Load::Sustained(load), repeat as u64);
                // What takes longer than was promised need not be waited for.
                Ok(holds(&self.open(&traffic, slo.min(experiment.drain))?, slo))
            })?;
            found.push(MaxLoad { policy, repeat, load });
        }
        Ok(found)
    }

    fn choose(&self, policy: &str) -> Result<(), AbError> {
        let policy =
            policy.parse().map_err(|error: UnknownPolicy| AbError::unknown_policy(error.0))?;
        self.generator.engine.set_policy(policy);
        Ok(())
    }

    fn open(&self, traffic: &Traffic, drain: Duration) -> Result<Figures, AbError> {
        let until = match self.experiment.trace {
            Some(_) => traffic.seconds(),
            None => self.experiment.warm_up + self.experiment.seconds,
        };
        let warm_up = self.experiment.warm_up;
        if until <= warm_up {
            return Err(AbError::NothingLeft { seconds: until, warm_up });
        }
        pass::open(&self.generator, traffic, (warm_up, until), drain)
    }

    /// The requests of one repeat under such a load.
    fn traffic(&self, load: Load, repeat: u64) -> Traffic {
        let Experiment { mix, trace, warm_up, seconds, .. } = self.experiment;
        let capacity = self.capacity.as_ref().map_or(0.0, |capacity| capacity.tokens_per_second);
        let rate = self.experiment.requests_per_second(load, capacity);
        match trace {
            Some(trace) => trace.clone().of_requests(rate),
            None => Traffic::poisson(*mix, repeat, rate, warm_up + seconds),
        }
    }
}
