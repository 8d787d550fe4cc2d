//! A simulated service on simulated devices, under vecmill's own scheduler: what each policy makes of
//! unequal devices, in seconds instead of hours.
//!
//! - `world` is the clock and the devices' work, `device` what these really are, `figures` what came
//!   of it, `classes` several kinds of work on the same devices, `report` the table and the picture; `predict` sets what came of a real run beside it.
//!
//! The choice behind it: the scheduler is a state machine that is handed the time, so that the very
//! code that serves is what is simulated.

mod classes;
mod device;
mod figures;
mod predict;
mod report;
#[cfg(test)]
mod tests;
mod world;

use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use vecmill_scheduler::policy::PolicyName;
use vecmill_scheduler::{Coefficients, Priority};

use crate::Outcome;
use classes::ClassSpec;
use device::{Device, Mishap, least_makespan};
use figures::Figures;
pub(crate) use predict::{PredictArguments, predict};
use vecmill_lab::results;
use vecmill_lab::traffic::{Arrival, Mix, Traffic};
use world::{Experiment, World};

/// About a GPU with a small model.
const MODEL: &str = "1e-3,1e-6,5e-10";

/// Loads when none is given: busy, and nearly at the limit.
const USUAL_LOADS: [f64; 2] = [0.8, 0.95];

/// Made requests: the part of them that have many inputs, and the most tokens of an input.
const LARGE: f64 = 0.1;
const LONGEST: usize = 512;

/// Arguments of `vecmill-bench simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// Devices by their speed, such as 1,0.25, or 500x1,500x0.25; below 0.1 it is a processor's. May
    /// be given several times
    #[arg(long, value_name = "SPEEDS", default_values = ["1,1", "1,0.25", "1,1,0.5,0.25", "1,0.02"])]
    devices: Vec<Fleet>,
    /// What a batch takes on a device of speed 1, in seconds: A,B,C of A + B · tokens + C · Σ length²
    #[arg(long, value_name = "A,B,C", default_value = MODEL)]
    model: Model,
    /// Loads, as parts of what all devices can do together [default: 0.8,0.95; a trace's own]
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    loads: Vec<f64>,
    /// File with the requests and their times, as for vecmill ab; --loads stretches these
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Policies to compare; all if none is given
    #[arg(long, value_delimiter = ',')]
    policies: Vec<String>,
    /// Several classes of work at once, each as SLOWER:LOAD, SLOWER:LOAD:WEIGHT or
    /// SLOWER:LOAD:WEIGHT:bulk: how many times as long its batches take as --model says, and the part of
    /// all devices' time that its requests need
    #[arg(long, value_name = "CLASSES", value_delimiter = ',', conflicts_with_all = ["trace", "loads", "mishap", "svg"])]
    classes: Vec<ClassSpec>,
    /// What happens to the last device: slows-down (threefold, half-way), fails or hangs (in the
    /// third quarter)
    #[arg(long, value_name = "WHAT")]
    mishap: Option<Mishap>,
    /// Made requests of each run
    #[arg(long, default_value_t = 200_000, conflicts_with = "trace")]
    requests: u32,
    /// The same seed makes the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for a picture of the figures
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The most devices that are simulated together.
const MOST_DEVICES: usize = 10_000;

/// Devices by their speed.
#[derive(Debug, Clone)]
struct Fleet(Vec<f64>);

impl FromStr for Fleet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut speeds = Vec::new();
        for part in text.split(',') {
            let (count, speed) = part.trim().split_once('x').unwrap_or(("1", part.trim()));
            match (count.parse::<usize>(), speed.parse::<f64>()) {
                (Ok(count @ 1..), Ok(speed)) if speed > 0.0 && speed <= 1e3 => {
                    let room = MOST_DEVICES.saturating_sub(speeds.len());
                    if count > room {
                        return Err(format!("more than {MOST_DEVICES} devices"));
                    }
                    speeds.resize(speeds.len() + count, speed);
                }
                _ => {
                    return Err(format!(
                        "`{part}` is no speed: expected numbers above 0, such as 1,0.25 or 500x1"
                    ));
                }
            }
        }
        Ok(Self(speeds))
    }
}

/// The time of a batch at full speed.
#[derive(Debug, Clone, Copy)]
struct Model(Coefficients);

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<f64> = text.split(',').filter_map(|part| part.trim().parse().ok()).collect();
        match parts[..] {
            [fixed, per_token, per_square] if per_token > 0.0 => {
                let model = Coefficients { fixed, per_token, per_square };
                model.are_sound().then_some(Self(model))
            }
            _ => None,
        }
        .ok_or_else(|| format!("expected three numbers of seconds, such as {MODEL}"))
    }
}

impl FromStr for Mishap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "slows-down" => Ok(Self::SlowsDown(3.0)),
            "fails" => Ok(Self::Fails),
            "hangs" => Ok(Self::Hangs),
            _ => Err("expected slows-down, fails or hangs".to_owned()),
        }
    }
}

/// What runs under one policy.
#[derive(Debug, Clone, Serialize)]
struct Row {
    devices: Vec<f64>,
    /// `None` where all the work is there at the beginning.
    load: Option<f64>,
    policy: String,
    /// The time taken, relative to the least possible; only where all the work is there at once.
    of_least_makespan: Option<f64>,
    figures: Figures,
}

/// What the devices have to do.
#[derive(Debug, Clone, Copy)]
struct Work<'a> {
    /// The part of the devices' whole speed; `None` for made requests that come all at once, and for
    /// a trace's own times.
    load: Option<f64>,
    /// Requests, if there is no trace.
    requests: u32,
    mix: Mix,
    trace: Option<&'a Traffic>,
}

/// Simulates and prints a table.
pub(crate) fn run(arguments: &SimulateArguments) -> Outcome {
    let policies: Vec<String> = if arguments.policies.is_empty() {
        PolicyName::ALL.iter().map(PolicyName::to_string).collect()
    } else {
        arguments.policies.clone()
    };
    if !arguments.classes.is_empty() {
        return classes::run(arguments, &policies);
    }
    let trace = arguments.trace.as_deref().map(read).transpose()?;
    let begin = Instant::now();
    let (mut rows, mut simulated) = (Vec::new(), 0);
    for Fleet(speeds) in &arguments.devices {
        let mut devices: Vec<_> =
            speeds.iter().map(|&speed| Device::new(speed, arguments.model.0)).collect();
        if let Some(last) = devices.last_mut() {
            last.mishap = arguments.mishap;
        }
        for work in arguments.work(trace.as_ref()) {
            for policy in &policies {
                let row = simulate(&devices, &work, policy)?;
                simulated += row.figures.answered;
                rows.push(Row { devices: speeds.clone(), ..row });
            }
        }
    }
    let rate = simulated as f64 / begin.elapsed().as_secs_f64();
    results::line(&report::table(&rows))?;
    results::line(&format!("{:.2} million requests simulated per second", rate / 1e6))?;
    if let Some(file) = &arguments.svg {
        fs::write(file, report::draw(&rows))?;
    }
    results::write(arguments.output.as_deref(), "simulated", &rows)
}

impl SimulateArguments {
    /// What each group of devices has to do.
    fn work<'a>(&self, trace: Option<&'a Traffic>) -> Vec<Work<'a>> {
        let usual = if trace.is_none() { &USUAL_LOADS[..] } else { &[] };
        let loads = if self.loads.is_empty() { usual } else { &self.loads };
        // A mishap comes at a part of the run, and how long bulk work runs is what is asked.
        let without = match trace {
            Some(_) => self.loads.is_empty(),
            None => self.mishap.is_none(),
        };
        let mix = Mix { large: LARGE, longest: LONGEST, seed: self.seed };
        let loads = loads.iter().copied().map(Some).chain(without.then_some(None));
        loads.map(|load| Work { load, requests: self.requests, mix, trace }).collect()
    }
}

fn read(path: &Path) -> Result<Traffic, Box<dyn Error>> {
    let named = |error: &dyn Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| named(&error))?;
    Ok(Traffic::read(BufReader::new(file)).map_err(|error| named(&error))?)
}

fn simulate(devices: &[Device], work: &Work<'_>, policy: &str) -> Result<Row, Box<dyn Error>> {
    let &Work { mix, load, requests, trace } = work;
    let whole: f64 = devices.iter().map(Device::rate).sum();
    let experiment = Experiment { devices, policy, seed: mix.seed, requests, ..Experiment::EMPTY };
    let (load, outcome) = match (trace, load) {
        (Some(trace), load) => {
            let stretched = load.map(|load| trace.clone().of_tokens(load * whole));
            let trace = stretched.as_ref().unwrap_or(trace);
            let (span, requests) = (trace.seconds(), u32::try_from(trace.arrivals.len())?);
            let load = (span > 0.0).then(|| trace.tokens() as f64 / span / whole);
            let experiment = Experiment { span, requests, ..experiment };
            (load, World::new(experiment)?.run(trace.arrivals.iter().cloned()))
        }
        (None, Some(load)) => {
            let rate = load * whole / mix.mean_tokens();
            let due = |request: Arrival| Arrival { at: request.at / rate, ..request };
            let experiment = Experiment { span: f64::from(requests) / rate, ..experiment };
            (Some(load), World::new(experiment)?.run(mix.requests(0).map(due)))
        }
        (None, None) => {
            let due = |request: Arrival| Arrival { at: 0.0, ..request };
            let experiment = Experiment { priority: Priority::Bulk, ..experiment };
            (None, World::new(experiment)?.run(mix.requests(0).map(due)))
        }
    };
    let tokens = outcome.done.tokens as f64;
    let least = least_makespan(devices, tokens, outcome.done.squares / tokens);
    let figures = outcome.figures();
    Ok(Row {
        devices: Vec::new(),
        load,
        policy: policy.to_owned(),
        of_least_makespan: load.is_none().then_some(figures.seconds / least),
        figures,
    })
}
